//! Participants and nodes: who is declared, who is there, what they can do.

use aivillage_base::NodeName;
use aivillage_base::time::rfc3339;
use aivillage_base::wire::{DataSummary, NodeType};
use aivillage_fog::{Declaration, NodeRecord, NodeState};
use serde::Serialize;
use utoipa::ToSchema;

use super::status::ParticipantSummary;
use crate::body::{Fields, FromFields};

/// An inventory entry: counts as `declared`, is never invited before its node connects.
#[derive(Debug, ToSchema)]
pub(crate) struct DeclareParticipant {
    /// The name its node is or will be enrolled under.
    #[schema(value_type = String, example = "hospital-a")]
    participant_id: NodeName,
    /// `mobile`, `edge`, `cloud` or `gpu`.
    #[schema(value_type = String, example = "edge")]
    node_type: NodeType,
    /// What it claims to be able to do.
    #[schema(required = false)]
    capabilities: Capabilities,
}

/// Claimed or measured figures of a machine.
#[derive(Debug, Clone, Copy, Default, Serialize, ToSchema)]
pub(crate) struct Capabilities {
    /// 10^9 f32 operations a second.
    #[schema(required = false, minimum = 0.0)]
    compute_gflops: f64,
    /// 2^30 bytes.
    #[schema(required = false, minimum = 0.0)]
    memory_gb: f64,
    /// 10^6 bits a second.
    #[schema(required = false, minimum = 0.0)]
    network_mbps: f64,
}

impl FromFields for Capabilities {
    fn read(fields: &mut Fields) -> Option<Self> {
        Some(Self {
            compute_gflops: fields.or("compute_gflops", 0.0),
            memory_gb: fields.or("memory_gb", 0.0),
            network_mbps: fields.or("network_mbps", 0.0),
        })
    }
}

impl FromFields for DeclareParticipant {
    fn read(fields: &mut Fields) -> Option<Self> {
        let participant_id = fields.required("participant_id");
        let node_type = fields.required("node_type");
        let capabilities = fields.object("capabilities").unwrap_or_default();
        Some(Self { participant_id: participant_id?, node_type: node_type?, capabilities })
    }
}

impl From<DeclareParticipant> for Declaration {
    fn from(d: DeclareParticipant) -> Self {
        Self {
            participant_id: d.participant_id,
            node_types: vec![d.node_type],
            compute_gflops: d.capabilities.compute_gflops,
            memory_gb: d.capabilities.memory_gb,
            network_mbps: d.capabilities.network_mbps,
        }
    }
}

/// A participant that was declared.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct DeclareAnswer {
    pub(crate) participant_id: String,
    /// `declared`, `offline` or `connected`.
    #[schema(value_type = String)]
    pub(crate) status: NodeState,
}

/// The inventory in name order.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ParticipantList {
    pub(crate) participants: Vec<Participant>,
    pub(crate) summary: ParticipantSummary,
}

/// One participant: declared, or known because its node has connected, or both.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Participant {
    participant_id: String,
    /// `declared`, `offline` or `connected`.
    #[schema(value_type = String)]
    status: NodeState,
    #[schema(value_type = Vec<String>)]
    node_types: Vec<NodeType>,
    /// Measured by the node if `measured`, else as declared.
    capabilities: Capabilities,
    measured: bool,
    first_seen: String,
    last_seen: String,
}

impl From<NodeRecord> for Participant {
    fn from(record: NodeRecord) -> Self {
        let declared = record.declared.as_ref();
        let network_mbps = declared.map_or(0.0, |d| d.network_mbps);
        let (node_types, capabilities) = match (&record.report, declared) {
            (Some(report), _) => (
                report.node_types.clone(),
                Capabilities { compute_gflops: report.compute_gflops, memory_gb: report.memory_gb, network_mbps },
            ),
            (None, Some(d)) => (
                d.node_types.clone(),
                Capabilities { compute_gflops: d.compute_gflops, memory_gb: d.memory_gb, network_mbps },
            ),
            (None, None) => (Vec::new(), Capabilities::default()),
        };
        Self {
            participant_id: record.name.to_string(),
            status: record.state,
            node_types,
            capabilities,
            measured: record.report.is_some(),
            first_seen: rfc3339(record.first_seen_ms),
            last_seen: rfc3339(record.last_seen_ms),
        }
    }
}

/// Enrolled nodes in name order.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct NodeList {
    pub(crate) nodes: Vec<Node>,
}

/// An enrolled node and what it measured of itself.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Node {
    pub(crate) name: String,
    /// Its Ed25519 key, 64 hex characters.
    pub(crate) node_id: String,
    /// `offline`, `connected` or `revoked`.
    pub(crate) status: &'static str,
    #[schema(value_type = Vec<String>)]
    pub(crate) node_types: Vec<NodeType>,
    pub(crate) version: Option<String>,
    /// 10^9 f32 operations a second.
    pub(crate) compute_gflops: Option<f64>,
    /// 2^30 bytes.
    pub(crate) memory_gb: Option<f64>,
    pub(crate) cores: Option<u32>,
    /// Does it take inference requests?
    pub(crate) serves: bool,
    /// Name, rows and shape of the data it would train on; never the data.
    #[schema(value_type = Vec<Object>)]
    pub(crate) data: Vec<DataSummary>,
    pub(crate) last_seen: Option<String>,
}

impl Node {
    /// From the inventory; `revoked` comes from enrolment.
    pub(crate) fn new(name: String, node_id: String, record: Option<NodeRecord>, revoked: bool) -> Self {
        let connected = record.as_ref().is_some_and(|r| r.state == NodeState::Connected);
        let last_seen = record.as_ref().map(|r| rfc3339(r.last_seen_ms));
        let report = record.and_then(|r| r.report);
        Self {
            name,
            node_id,
            status: match (revoked, connected) {
                (true, _) => "revoked",
                (false, true) => "connected",
                (false, false) => "offline",
            },
            version: report.as_ref().map(|r| r.version.clone()),
            compute_gflops: report.as_ref().map(|r| r.compute_gflops),
            memory_gb: report.as_ref().map(|r| r.memory_gb),
            cores: report.as_ref().map(|r| r.cores),
            serves: report.as_ref().is_some_and(|r| r.serves),
            node_types: report.as_ref().map(|r| r.node_types.clone()).unwrap_or_default(),
            data: report.map(|r| r.data).unwrap_or_default(),
            last_seen,
        }
    }
}

/// A node that was shut out.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct RevokeAnswer {
    pub(crate) name: String,
    /// `revoked`.
    pub(crate) status: &'static str,
}
