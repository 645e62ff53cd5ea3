//! The owner's rules beside a job: which would refuse it, and why. All of them, not only the first.

use aivillage_base::wire::Invitation;
use aivillage_training::participant::NodePolicy;
use aivillage_training::participant::policy::{Asked, AskedHelper, Refusal, Rule, refused, unable};
use serde_json::{Value, json};

use crate::cli::args::PreviewArgs;
use crate::cli::out;
use crate::exit::{CliError, ExitCode};

/// Each rule with its verdict on one round; None = it refuses nothing.
pub(super) struct Rules(Vec<(Rule, Option<String>)>);

impl Rules {
    /// What these rules say to this invitation now.
    pub(super) fn of(policy: &NodePolicy, invitation: &Invitation, helped: bool, wall_ms: u64) -> Self {
        // Which helper it is, with its key, the round will say.
        let helper = if helped { AskedHelper::Some } else { AskedHelper::Nobody };
        let asked = Asked { helper, ..Asked::from(invitation) };
        let unable = unable(invitation).map(|Refusal { rule, reason }| (rule, Some(reason)));
        let owners = Rule::OWNERS.into_iter().map(|rule| (rule, refused(policy, rule, &asked, wall_ms)));
        Self(unable.into_iter().chain(owners).collect())
    }

    /// The rules that refuse, with their reasons.
    pub(super) fn refusing(&self) -> impl Iterator<Item = (Rule, &str)> {
        self.0.iter().filter_map(|(rule, reason)| Some((*rule, reason.as_deref()?)))
    }

    pub(super) fn json(&self) -> Value {
        let rule = |(rule, reason): &(Rule, Option<String>)| json!({"rule": rule.name(), "refuses": reason});
        self.0.iter().map(rule).collect()
    }

    pub(super) fn table(&self) -> String {
        let verdict = |reason: &Option<String>| reason.as_ref().map_or("allows it".into(), |r| format!("refuses: {r}"));
        let rows = self.0.iter().map(|(rule, reason)| vec![rule.name().to_owned(), verdict(reason)]).collect();
        out::table(&["RULE", "THIS JOB"], rows)
    }

    /// Shows the verdicts; what comes back ends the command.
    pub(super) fn show_refusal(
        &self,
        args: &PreviewArgs,
        (to, from): (&str, &str),
        invitation: &Invitation,
    ) -> CliError {
        if args.json {
            let name = &invitation.job_name;
            out::document(&json!({"to": to, "from": from, "job_name": name, "rules": self.json(), "header": null}));
        } else {
            out::line(&self.table());
        }
        let refusing: Vec<String> =
            self.refusing().map(|(rule, reason)| format!("{reason} ({})", rule.name())).collect();
        let message = format!("nothing would be sent but a refusal: {}", refusing.join("; "));
        CliError::new(ExitCode::Refused, message).hint("the owner's rules stand in `privacy` of node.yaml")
    }
}
