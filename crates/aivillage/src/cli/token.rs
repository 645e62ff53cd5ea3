//! `aivillage token`: who may come in.

use aivillage_base::NodeName;
use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};

use super::args::{ClientArgs, Connection};
use super::out::{self, cell, items};
use super::segment;
use crate::client::find;
use crate::config::Environment;
use crate::exit::CliError;

/// Let nodes, clients and operators in
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a one-time token for a node, or a key for a client or an operator
    Create(CreateArgs),
    /// List tokens and keys, without their secrets
    #[command(alias = "list")]
    Ls(ClientArgs),
    /// Make a token or key useless at once
    Revoke(RevokeArgs),
}

/// Whom to let in.
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// node: joins once with it; client: uses the API; admin: may do everything
    #[arg(long, value_enum)]
    role: Role,
    /// Whom it is for; a node is enrolled under this name
    #[arg(long, value_name = "NAME")]
    owner: NodeName,
    /// Life of a node's token: 30m, 24h, 7d, or seconds [default: 24h]
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    ttl: Option<u64>,
    /// Only the token: no word about how to use it
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    client: ClientArgs,
}

/// What to revoke.
#[derive(Debug, Args)]
pub struct RevokeArgs {
    /// Its id, from `aivillage token ls`
    id: String,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Role {
    Node,
    Client,
    Admin,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Client => "client",
            Self::Admin => "admin",
        }
    }
}

/// Seconds of `90`, `90s`, `30m`, `24h` or `7d`.
fn seconds(text: &str) -> Result<u64, String> {
    let (digits, unit) = match text.char_indices().last() {
        Some((at, 's')) => (&text[..at], 1),
        Some((at, 'm')) => (&text[..at], 60),
        Some((at, 'h')) => (&text[..at], 3_600),
        Some((at, 'd')) => (&text[..at], 86_400),
        Some(_) | None => (text, 1),
    };
    let count: Option<u64> = digits.parse().ok();
    count.and_then(|c| c.checked_mul(unit)).ok_or_else(|| "write it like 30m, 24h, 7d, or seconds".to_owned())
}

pub(super) async fn run(command: TokenCommand, environment: &Environment) -> Result<(), CliError> {
    match command {
        TokenCommand::Create(args) => create(&args, environment).await,
        TokenCommand::Ls(args) => list(&args, environment).await,
        TokenCommand::Revoke(args) => {
            let client = find(&args.connection, environment)?;
            client.delete(&format!("tokens/{}", segment("token's id", &args.id)?)).await?;
            out::line(&format!("{} is revoked", args.id));
            Ok(())
        }
    }
}

async fn create(args: &CreateArgs, environment: &Environment) -> Result<(), CliError> {
    let client = find(&args.client.connection, environment)?;
    let mut body = json!({ "role": args.role.name(), "owner": args.owner });
    if let Some(ttl) = args.ttl {
        body["ttl_s"] = ttl.into();
    }
    let answer: Value = client.post("tokens", &body).await?;
    if args.client.json {
        out::document(&answer);
        return Ok(());
    }
    // The secret alone goes to stdout, so that TOKEN=$(aivillage token create …) works.
    out::line(&cell(&answer["token"]));
    match args.role {
        Role::Node | Role::Client | Role::Admin if args.quiet => {}
        Role::Node => {
            let status: Value = client.get("status").await?;
            let link = out::present(&status["config"]["link"]).map_or_else(|| "HOST:8001".to_owned(), cell);
            out::note(&format!(
                "It works once, until {}. On the machine of {}:\n  aivillage node join {link} --token TOKEN --dir DIR",
                cell(&answer["expires_at"]),
                args.owner
            ));
        }
        Role::Client | Role::Admin => out::note(&format!(
            "It is shown this once. Use it as API_KEY or with --key; revoke it with `aivillage token revoke {}`.",
            cell(&answer["id"])
        )),
    }
    Ok(())
}

async fn list(args: &ClientArgs, environment: &Environment) -> Result<(), CliError> {
    let list: Value = find(&args.connection, environment)?.get("tokens").await?;
    let columns = ["id", "role", "owner", "created_at", "expires_at", "used_by"];
    let rows = items(&list, "tokens").iter().map(|t| columns.iter().map(|c| cell(&t[*c])).collect()).collect();
    let header = ["ID", "ROLE", "OWNER", "CREATED", "EXPIRES", "USED BY"];
    out::listing(args.json, &list, &header, rows, "no tokens: make one with `aivillage token create`");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_in_the_units_that_people_write() {
        assert_eq!(["90", "90s", "30m", "24h", "7d"].map(|t| seconds(t).unwrap()), [90, 90, 1_800, 86_400, 604_800]);
        for bad in ["", "h", "1w", "-1", "99999999999999999d"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }
}
