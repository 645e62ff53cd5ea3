//! Which gateway a command talks to: `--url`, `--data DIR`, `AIVILLAGE_URL`, or the folder `./aivillage-data`.

use std::path::{Path, PathBuf};

use super::{Address, Client};
use crate::cli::args::{Connection, DATA_DEFAULT};
use crate::config::Environment;
use crate::exit::{CliError, ExitCode};
use crate::folder::DataFolder;

/// The gateway that `connection` and the environment name.
///
/// The key is `--key`; for a gateway found through its folder, that folder's admin key; else `API_KEY`.
///
/// # Errors
/// Nothing is found (exit code 7: says what was tried), or what is found is damaged.
pub fn find(connection: &Connection, environment: &Environment) -> Result<Client, CliError> {
    let from_environment = environment.api_key.as_ref().map(|k| k.expose());
    let ca = connection.ca.as_deref();
    let remote = |url: &str, source: &str| {
        let advice = "check the address, and that `aivillage up` runs there".to_owned();
        let address = Address::parse(url, ca, source.to_owned(), advice)?;
        Ok(Client::new(address, connection.key.as_deref().or(from_environment)))
    };
    if let Some(url) = &connection.url {
        return remote(url, "from --url");
    }
    match (&connection.data, &environment.url) {
        (None, Some(url)) => remote(url, "from AIVILLAGE_URL"),
        (folder, _) => local(connection, folder.as_deref(), from_environment),
    }
}

fn local(connection: &Connection, folder: Option<&Path>, api_key: Option<&str>) -> Result<Client, CliError> {
    let path = folder.map_or_else(|| PathBuf::from(DATA_DEFAULT), Path::to_path_buf);
    let shown = path.display();
    let start = match folder {
        Some(_) => format!("start one with `aivillage up --data {shown}`"),
        None => "start one with `aivillage up`, or name one with --url URL, AIVILLAGE_URL or --data DIR".to_owned(),
    };
    let endpoint = match DataFolder::endpoint(&path) {
        Ok(Some(endpoint)) => endpoint,
        Ok(None) => {
            let tried = match folder {
                Some(_) => format!("the folder {shown} has no gateway running: there is no file {shown}/endpoint"),
                None => format!(
                    "no gateway found: neither --url, --data nor AIVILLAGE_URL is given, and there is no file \
                     {shown}/endpoint"
                ),
            };
            return Err(CliError::new(ExitCode::Unavailable, tried).hint(start));
        }
        Err(why) => {
            return Err(CliError::new(ExitCode::Unavailable, format!("{shown}/endpoint cannot be used: {why}"))
                .hint("restart the gateway: it writes that file again"));
        }
    };
    let key =
        std::fs::read_to_string(path.join("admin.key")).ok().map(|k| k.trim().to_owned()).filter(|k| !k.is_empty());
    let key = connection.key.as_deref().or(key.as_deref()).or(api_key);
    let source = format!("from {shown}/endpoint, written by process {}", endpoint.pid);
    let address = Address::parse(&endpoint.http, connection.ca.as_deref(), source, start)?;
    Ok(Client::new(address, key))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::folder::Endpoint;

    fn environment(url: Option<&str>) -> Environment {
        Environment { url: url.map(str::to_owned), ..Environment::default() }
    }

    fn serving() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let folder = DataFolder::open(dir.path()).unwrap();
        folder.announce(&Endpoint { http: "http://127.0.0.1:9".into(), link: "127.0.0.1:10".into(), pid: 1 }).unwrap();
        dir
    }

    #[test]
    fn a_url_on_the_command_line_wins_over_a_folder_and_that_over_the_environment() {
        let dir = serving();
        let data = Some(dir.path().to_owned());
        let url = Some("http://example.org:1".to_owned());
        let env = environment(Some("http://example.org:2"));
        let found = |connection: Connection| find(&connection, &env).unwrap().url().to_owned();
        assert_eq!(found(Connection { url, data: data.clone(), ..Connection::default() }), "http://example.org:1");
        assert_eq!(found(Connection { data, ..Connection::default() }), "http://127.0.0.1:9");
        assert_eq!(found(Connection::default()), "http://example.org:2");
    }

    #[test]
    fn a_folder_without_a_gateway_is_told_with_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let connection = Connection { data: Some(dir.path().to_owned()), ..Connection::default() };
        let error = find(&connection, &environment(None)).unwrap_err();
        assert_eq!(error.code, ExitCode::Unavailable);
        assert!(error.message.contains("has no gateway running"), "{error}");
        assert!(error.hint.unwrap().contains("aivillage up --data"));
    }

    #[test]
    fn addresses_that_are_none_are_usage_errors() {
        for bad in ["127.0.0.1:8000", "ftp://x", "http://", "http://user:pw@host", "http://host?x=1"] {
            let connection = Connection { url: Some(bad.into()), ..Connection::default() };
            assert_eq!(find(&connection, &environment(None)).unwrap_err().code, ExitCode::Usage, "{bad}");
        }
    }
}
