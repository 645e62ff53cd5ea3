//! `aivillage node pins`: by which keys a node knows the others, and the owner's way to forget one.

use std::path::PathBuf;

use aivillage_base::NodeName;
use clap::Args;
use serde_json::{Value, json};

use crate::cli::out;
use crate::config::Environment;
use crate::exit::{CliError, ExitCode};
use crate::node::{NodeFolder, known_head};

/// Whose pins.
#[derive(Debug, Args)]
pub struct PinsArgs {
    /// Folder of the node; it may be running
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Forget the key of this node: the next one that it shows is trusted
    #[arg(long, value_name = "NAME")]
    forget: Option<NodeName>,
    /// One JSON document on stdout
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &PinsArgs, environment: &Environment) -> Result<(), CliError> {
    if !args.dir.is_dir() {
        return Err(CliError::new(ExitCode::NotFound, format!("there is no folder {}", args.dir.display())));
    }
    let folder = NodeFolder::open(&args.dir)?.sealed(environment.seal());
    let failed = |e: String| CliError::new(ExitCode::Failed, e);
    if let Some(name) = &args.forget {
        let forgotten = folder.pins().forget(name).map_err(failed)?.ok_or_else(|| {
            CliError::new(ExitCode::NotFound, format!("no key of {name} is pinned"))
                .hint("`aivillage node pins --dir DIR` lists them")
        })?;
        match args.json {
            true => out::document(&json!({"forgotten": {"name": name, "key": forgotten}})),
            false => out::line(&format!("{name} is not known by {forgotten} any more: its next key is trusted")),
        }
        return Ok(());
    }
    let roster = folder.roster(&folder.config()?)?;
    let by_roster = roster.is_some();
    let known = match roster {
        Some(roster) => roster.nodes().clone(),
        None => folder.pins().list().map_err(failed)?,
    };
    let own = folder.existing_identity()?.id();
    let enrolment = folder.enrolment()?;
    let head = enrolment.as_ref().map(|enrolment| known_head(folder.path(), &enrolment.ca_pem)).transpose();
    let head = head.map_err(failed)?.unwrap_or_default();
    let name = enrolment.map(|enrolment| enrolment.name);
    let document = json!({
        "own": {"name": name, "key": own},
        "trust": if by_roster { "roster" } else { "first_use" },
        "registry": head,
        "pins": known.iter().map(|(name, key)| json!({"name": name, "key": key})).collect::<Vec<Value>>(),
    });
    if args.json {
        out::document(&document);
        return Ok(());
    }
    let named = name.map_or_else(String::new, |name| format!(" ({name})"));
    out::line(&format!("this node{named} has the key {own}"));
    if head.sequence > 0 {
        out::line(&format!("it knows {} enrolments and revocations, the last is {}", head.sequence, head.hash));
    }
    out::line(match by_roster {
        true => "it trusts its roster:",
        false => "it has met these, and refuses another key of theirs:",
    });
    let rows = known.iter().map(|(name, key)| vec![name.to_string(), key.to_string()]).collect();
    out::listing(false, &document, &["NAME", "KEY"], rows, "nobody yet: keys are pinned in the first secure round");
    Ok(())
}
