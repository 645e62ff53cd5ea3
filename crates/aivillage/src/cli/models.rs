//! `aivillage models`: the catalogue.

use std::path::{Path, PathBuf};

use aivillage_base::{ModelId, bundle};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::args::ClientArgs;
use super::out::{self, cell, items};
use super::{read_document, segment};
use crate::client::{Client, find};
use crate::config::Environment;
use crate::exit::{CliError, ExitCode};

/// The catalogue of models
#[derive(Debug, Subcommand)]
pub enum ModelsCommand {
    /// List the models
    #[command(alias = "list")]
    Ls(ClientArgs),
    /// Show one model
    Show(ShowArgs),
    /// Fetch a model's bytes, verified
    Pull(PullArgs),
    /// Register a model: metadata (.json, .yaml) or a bundle (.safetensors)
    Register(RegisterArgs),
}

/// Which model.
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// Its id
    model: String,
    #[command(flatten)]
    client: ClientArgs,
}

/// Which model, and where to.
#[derive(Debug, Args)]
pub struct PullArgs {
    /// Its id
    model: String,
    /// Where to write it [default: ID.safetensors]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    client: ClientArgs,
}

/// What to register.
#[derive(Debug, Args)]
pub struct RegisterArgs {
    /// Metadata as JSON or YAML (fields of POST models), or a bundle of this program
    file: PathBuf,
    /// For a bundle: the id to register it under [default: the file's name]
    #[arg(long)]
    id: Option<ModelId>,
    /// For a bundle: a name for people [default: the id]
    #[arg(long)]
    name: Option<String>,
    #[command(flatten)]
    client: ClientArgs,
}

pub(super) async fn run(command: ModelsCommand, environment: &Environment) -> Result<(), CliError> {
    match command {
        ModelsCommand::Ls(args) => list(&args, environment).await,
        ModelsCommand::Show(args) => {
            let client = find(&args.client.connection, environment)?;
            let model: Value = client.get(&format!("models/{}", segment("model's id", &args.model)?)).await?;
            show(args.client.json, &model);
            Ok(())
        }
        ModelsCommand::Pull(args) => {
            let client = find(&args.client.connection, environment)?;
            let model = segment("model's id", &args.model)?;
            let output = args.output.unwrap_or_else(|| format!("{model}.safetensors").into());
            pull(&client, &format!("models/{model}/content"), &output, args.client.json).await
        }
        ModelsCommand::Register(args) => register(args, environment).await,
    }
}

async fn list(args: &ClientArgs, environment: &Environment) -> Result<(), CliError> {
    let list: Value = find(&args.connection, environment)?.get("models").await?;
    let row = |m: &Value| {
        vec![
            cell(&m["model_id"]),
            cell(&m["model_name"]),
            cell(&m["model_version"]),
            cell(&m["state"]),
            cell(&m["parameters"]),
            m["bytes"].as_u64().map_or_else(|| "-".into(), out::bytes),
            m["blake3"].as_str().map_or("-", |b| &b[..b.len().min(12)]).to_owned(),
        ]
    };
    let rows = items(&list, "models").iter().map(row).collect();
    let header = ["ID", "NAME", "VERSION", "STATE", "VALUES", "SIZE", "BLAKE3"];
    out::listing(args.json, &list, &header, rows, "no models yet: a completed training job adds one");
    Ok(())
}

fn show(json: bool, model: &Value) {
    if json {
        return out::document(model);
    }
    let names = [
        "model_id",
        "model_name",
        "model_version",
        "state",
        "reason",
        "model_type",
        "framework",
        "parameters",
        "bytes",
        "blake3",
        "privacy_requirements",
        "supported_node_types",
        "architecture",
        "created_at",
        "updated_at",
    ];
    let pairs: Vec<_> = names.iter().filter(|n| !model[**n].is_null()).map(|n| (*n, cell(&model[*n]))).collect();
    out::line(&out::fields(&pairs));
}

/// Fetches a bundle into a file: verified against the name it is served under, whole or not at all.
pub(super) async fn pull(client: &Client, path: &str, output: &Path, json: bool) -> Result<(), CliError> {
    let download = client.download(path).await?;
    let found = aivillage_base::Digest::of(&download.bytes).to_string();
    if download.etag.as_deref().is_some_and(|etag| etag != found) {
        let message =
            format!("the bytes that arrived are not the model: BLAKE3 {found}, announced {:?}", download.etag);
        return Err(CliError::new(ExitCode::Failed, message).hint("try again; if it stays, check the gateway's disk"));
    }
    crate::folder::write_whole(output, &download.bytes).map_err(|e| {
        CliError::new(ExitCode::Failed, format!("cannot write {}: {e}", output.display()))
            .hint("choose another file with -o FILE")
    })?;
    let length = download.bytes.len() as u64;
    if json {
        out::document(&json!({ "file": output, "bytes": length, "blake3": found }));
    } else {
        out::line(&format!("{}: {}, BLAKE3 {found}", output.display(), out::bytes(length)));
    }
    Ok(())
}

async fn register(args: RegisterArgs, environment: &Environment) -> Result<(), CliError> {
    let client = find(&args.client.connection, environment)?;
    let is_bundle = args.file.extension().is_some_and(|e| e == "safetensors");
    let answer: Value = if is_bundle {
        upload(&client, &args).await?
    } else {
        if args.id.is_some() || args.name.is_some() {
            return Err(CliError::new(ExitCode::Usage, "--id and --name are for .safetensors files")
                .hint("metadata carries `model_id` and `model_name` itself"));
        }
        client.post("models", &read_document(&args.file)?).await?
    };
    if args.client.json {
        out::document(&answer);
    } else {
        let (id, state) = (cell(&answer["model_id"]), cell(&answer["state"]));
        out::line(&format!("{id} is {state}"));
    }
    Ok(())
}

async fn upload(client: &Client, args: &RegisterArgs) -> Result<Value, CliError> {
    let file = &args.file;
    let unreadable = |e: std::io::Error| {
        CliError::new(ExitCode::Failed, format!("cannot read {}: {e}", file.display())).hint("check the file's name")
    };
    let id = match &args.id {
        Some(id) => id.clone(),
        None => {
            let stem = file.file_stem().and_then(|s| s.to_str()).unwrap_or_default();
            ModelId::new(stem).map_err(|e| {
                CliError::new(ExitCode::Usage, format!("the file's name gives no id: {e}"))
                    .hint("name one with --id ID")
            })?
        }
    };
    let length = std::fs::metadata(file).map_err(unreadable)?.len();
    let front = front(file).map_err(unreadable)?;
    // Refused here, before any byte travels: a foreign file would be refused there, too.
    let header = bundle::read_header(&front, length).map_err(|e| {
        CliError::new(ExitCode::Failed, format!("{}: {e}", file.display()))
            .hint("only bundles of this program can be served; register metadata (.json, .yaml) for others")
    })?;
    let name = args.name.clone().unwrap_or_else(|| id.to_string());
    let metadata = json!({ "model_id": id, "model_name": name, "architecture": header.architecture });
    let _declared: Value = client.post("models", &metadata).await?;
    let opened = tokio::fs::File::open(file).await.map_err(unreadable)?;
    client.upload(&format!("models/{id}/content"), opened, length).await
}

/// The first bytes of a bundle, enough for its header.
fn front(path: &Path) -> std::io::Result<Vec<u8>> {
    use std::io::Read as _;
    let mut front = Vec::new();
    std::fs::File::open(path)?.take(bundle::HEADER_MAX as u64 + 8).read_to_end(&mut front)?;
    Ok(front)
}
