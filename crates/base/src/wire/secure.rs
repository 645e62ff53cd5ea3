//! The messages of secure aggregation: terms, adverts, sealed shares, survivors, openings.
//!
//! Protocol: Bonawitz et al. 2017, "Practical Secure Aggregation for Privacy-Preserving Machine Learning", the variant against
//! an active server. What each message must hold, and what its receiver checks, is said in the crate `privacy`.
//! Every upward message carries an Ed25519 signature by the sender's enrolled key over a text that names the round's context.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::ids::NodeName;
use crate::wire::Peer;
use crate::wire::helper::{HelpedSum, HelperKey, SealedInput};

/// Bytes of a fixed length that anyone may see; 2N hexadecimal characters as text.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hex<const N: usize>(pub [u8; N]);

impl<const N: usize> fmt::Display for Hex<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl<const N: usize> fmt::Debug for Hex<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hex({self})")
    }
}

impl<const N: usize> Serialize for Hex<N> {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de, const N: usize> Deserialize<'de> for Hex<N> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(d)?;
        let mut out = [0; N];
        hex::decode_to_slice(&*text, &mut out)
            .map_err(|_| serde::de::Error::custom(format!("{} hexadecimal characters are expected", 2 * N)))?;
        Ok(Self(out))
    }
}

/// 32 bytes that only their addressee may see: never printed.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(pub Hex<32>);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// How an update counts in a sum of updates that nobody sees one by one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Weighting {
    /// As much as any other.
    Equal,
    /// By its number of examples.
    Examples,
    /// By its number of examples over what its number of steps does (normalised averaging).
    Steps,
}

/// What a secure round is agreed on before anybody takes part; with the invitation it fixes the round's context.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct SecureTerms {
    /// Version of the protocol; 1.
    pub version: u32,
    /// Smallest set of survivors whose sum may be opened, at least 3.
    pub cohort_min: u32,
    /// Nodes invited: no roster is larger.
    pub cohort_max: u32,
    /// Bits of the ring of sums: 16, 24, 32, 40, 48 or 64.
    pub bits: u32,
    /// What each update is multiplied by before it is summed.
    pub weighting: Weighting,
    /// Most examples that an update may have; 1 where all count the same.
    pub examples_max: u32,
    /// Who masks with whom.
    pub graph: GraphKind,
    /// What the threshold of the secret sharing must withstand.
    pub withstands: Withstands,
    /// Who takes the masks away, in place of the cohort's secret sharing; None = the cohort itself.
    #[serde(default)]
    pub helper: Option<HelperKey>,
}

/// Who masks with whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GraphKind {
    /// Everybody with everybody: adverts carry nonces.
    Full,
    /// Each with a few others, by lot: adverts carry commitments to nonces, which are revealed once the roster is fixed.
    Drawn,
}

/// Assumptions behind a threshold: how much may go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Withstands {
    /// Share of the participants that may work with the coordinator, 0 to 1.
    pub corrupt: f64,
    /// Share of the participants that may leave at any step, 0 to 1.
    pub dropout: f64,
    /// True if the coordinator may lie about who is left (semi-malicious), false if it only watches.
    pub lying_coordinator: bool,
    /// Neighbours of each participant; None = as many as the assumptions ask for.
    #[serde(default)]
    pub neighbours: Option<u32>,
}

/// How far the gateway's registry of enrolments had come: number and hash of its last entry. Nothing and zeros = none was
/// shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegistryHead {
    /// Entries so far.
    pub sequence: u64,
    /// Hash of the last one, which covers all before it.
    pub hash: Hex<32>,
}

impl Default for RegistryHead {
    fn default() -> Self {
        Self { sequence: 0, hash: Hex([0; 32]) }
    }
}

/// Step 0: the keys of one participant for one context.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Advert {
    /// Who: the enrolled key that signs, and the enrolled name.
    pub peer: Peer,
    /// X25519 key that shares are sealed to.
    pub box_key: Hex<32>,
    /// X25519 key that pairwise masks derive from.
    pub mask_key: Hex<32>,
    /// 32 random bytes towards the order of the graph; where it is drawn, the commitment to them.
    pub nonce: Hex<32>,
    /// The registry of enrolments as this participant was shown it.
    pub registry: RegistryHead,
    /// By `peer.id`.
    pub signature: Hex<64>,
}

/// Between steps 0 and 1, where the graph is drawn: what an advert has committed to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reveal {
    /// Hash of the adverts that the sender was shown.
    pub roster: Hex<32>,
    /// The nonce.
    pub nonce: Hex<32>,
    /// By the sender's enrolled key.
    pub signature: Hex<64>,
}

/// The same, downward: whose nonce it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revealed {
    /// Who.
    pub name: NodeName,
    /// Its nonce.
    pub nonce: Hex<32>,
    /// Its signature, which covers the roster.
    pub signature: Hex<64>,
}

/// Two shares, sealed from one participant to another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedShares {
    /// On the way up: to whom; on the way down: from whom.
    pub with: NodeName,
    /// Nonce, two shares, tag (ChaCha20-Poly1305).
    pub sealed: Hex<92>,
}

/// Step 1: one participant's shares for its neighbours.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shares {
    /// Hash of the roster they are made for.
    pub roster: Hex<32>,
    /// One for each neighbour, in name order.
    pub boxes: Vec<SealedShares>,
    /// Commitment to the seed of the sender's own mask.
    pub commitment: Hex<32>,
    /// By the sender's enrolled key.
    pub signature: Hex<64>,
}

/// Beside the bytes of what is summed in a secure round: who vouches for them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "by", rename_all = "snake_case")]
pub enum MaskedInput {
    /// Step 2: an update under masks that its cohort agreed on.
    Roster {
        /// Hash of the roster it is masked for.
        roster: Hex<32>,
        /// By the sender's enrolled key, over the payload's digest.
        signature: Hex<64>,
    },
    /// An update under a mask that the round's helper takes away.
    Seed(Box<SealedInput>),
    /// What takes all masks away: the helper's answer.
    Helper(HelpedSum),
}

/// Step 3: one participant's word that it was shown this set of survivors and will answer for no other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Agreement {
    /// Hash of the survivors.
    pub survivors: Hex<32>,
    /// By the sender's enrolled key.
    pub signature: Hex<64>,
}

/// Step 3, downward: whose word it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Agreed {
    /// Who.
    pub name: NodeName,
    /// Its word.
    pub signature: Hex<64>,
}

/// One share that opens a sum.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenedShare {
    /// Whose secret it is a share of.
    pub of: NodeName,
    /// A share of the seed of its own mask if it survived, of its masking key if not; never both.
    pub share: Secret,
}

/// Step 4: one participant's shares for one set of survivors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opening {
    /// Hash of the survivors it answers for.
    pub survivors: Hex<32>,
    /// One for each neighbour that sent shares, in name order.
    pub shares: Vec<OpenedShare>,
    /// By the sender's enrolled key.
    pub signature: Hex<64>,
}

/// Participant to coordinator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "snake_case")]
pub enum SecureUp {
    /// Step 0.
    Advert(Box<Advert>),
    /// Between steps 0 and 1, where the graph is drawn.
    Reveal(Reveal),
    /// Step 1.
    Shares(Shares),
    /// Step 3.
    Agreement(Agreement),
    /// Step 4.
    Opening(Opening),
    /// The participant stays silent on this context from now on, because of what it was shown.
    Alarm {
        /// Which check failed, e.g. `changed_key`.
        check: String,
        /// One sentence.
        detail: String,
    },
}

/// Coordinator to participant: what the next step answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "snake_case")]
pub enum SecureDown {
    /// Step 1: everybody's keys, in name order. Where the graph is drawn, its answer is a reveal.
    Roster {
        /// All adverts, the receiver's among them.
        adverts: Vec<Advert>,
    },
    /// Step 1, where the graph is drawn: everybody's nonces, in name order.
    Reveals {
        /// One for each advert.
        reveals: Vec<Revealed>,
    },
    /// Step 2: the shares for the receiver, in name order.
    Boxes {
        /// Who sent shares, in name order.
        sharers: Vec<NodeName>,
        /// Those for the receiver.
        boxes: Vec<SealedShares>,
    },
    /// Step 3: whose inputs count, in name order.
    Survivors {
        /// Their names.
        survivors: Vec<NodeName>,
    },
    /// Step 4: who vouches for the survivors, in name order.
    Agreements {
        /// Their words.
        agreed: Vec<Agreed>,
    },
}
