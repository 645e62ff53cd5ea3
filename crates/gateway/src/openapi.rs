//! The OpenAPI document, made from the handlers' own annotations plus what holds for all of them.
//!
//! Promise: every documented operation lists every problem it can answer with; access rules are in `security`.

use utoipa::OpenApi as _;
use utoipa::openapi::path::Operation;
use utoipa::openapi::security::{ApiKey, ApiKeyValue, Http, HttpAuthScheme, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{Content, InfoBuilder, OpenApi, Ref, ResponseBuilder};

use crate::problem::{PROBLEM_JSON, ProblemBody};
use crate::routes::{self, Groups};

/// Schemas that no handler names but problem documents use.
#[derive(utoipa::OpenApi)]
#[openapi(components(schemas(ProblemBody, crate::problem::Fault)))]
struct Common;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    Public,
    Client,
    Admin,
}

/// The document of every route that a gateway can have.
#[must_use]
pub fn document() -> OpenApi {
    document_of(true)
}

/// The document of a gateway with or without the routes of inference.
pub(crate) fn document_of(mount_inference: bool) -> OpenApi {
    let Groups { public, figures, client, admin } = routes::groups(mount_inference);
    let mut document = Common::openapi();
    document.info = InfoBuilder::new()
        .title("AIVillage federated API")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(
            "Federated training and inference. Errors are problem documents (RFC 9457, application/problem+json). \
             POSTs take an Idempotency-Key: the same key and body get the stored answer, another body 422, a running one 409.",
        ))
        .build();
    let groups =
        [(public, Access::Public), (figures, Access::Client), (client, Access::Client), (admin, Access::Admin)];
    for (group, access) in groups {
        let mut part = group.into_openapi();
        for (path, item) in &mut part.paths.paths {
            for (method, operation) in operations(item) {
                complete(path, method, operation, access);
            }
        }
        // `merge` keeps the first of two equal paths whole, so operations are merged one by one.
        for (path, item) in std::mem::take(&mut part.paths.paths) {
            match document.paths.paths.get_mut(&path) {
                Some(known) => known.merge_operations(item),
                None => {
                    document.paths.paths.insert(path, item);
                }
            }
        }
        document.merge(part);
    }
    let components = document.components.get_or_insert_default();
    components.add_security_scheme("bearer", SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer)));
    components.add_security_scheme("api_key", SecurityScheme::ApiKey(ApiKey::Header(ApiKeyValue::new("X-API-Key"))));
    document
}

/// The operations of a path that this gateway uses.
pub(crate) fn operations(item: &mut utoipa::openapi::PathItem) -> impl Iterator<Item = (&'static str, &mut Operation)> {
    [
        ("get", item.get.as_mut()),
        ("post", item.post.as_mut()),
        ("put", item.put.as_mut()),
        ("delete", item.delete.as_mut()),
    ]
    .into_iter()
    .filter_map(|(method, operation)| Some((method, operation?)))
}

fn complete(path: &str, method: &str, operation: &mut Operation, access: Access) {
    let everywhere = [
        ("400", "The request is not valid, or asks for privacy that cannot be given"),
        ("421", "The Host header names no host of this gateway"),
        ("500", "Internal error; the cause is in the log"),
    ];
    for (status, text) in everywhere {
        add(operation, status, text);
    }
    if access != Access::Public {
        operation.security = Some(vec![
            SecurityRequirement::new("bearer", Vec::<String>::new()),
            SecurityRequirement::new("api_key", Vec::<String>::new()),
        ]);
        add(operation, "401", "A valid API key is needed");
        add(operation, "403", "The key's scope is too small, or a foreign page asks");
        add(operation, "429", "Too much at once; Retry-After says when to come back");
        add(operation, "503", "The part is off or stopping; the reason is in the document");
    }
    if access == Access::Admin {
        let text = operation.description.take().unwrap_or_default();
        operation.description = Some(format!("{text}\n\nNeeds an admin key.").trim_start().to_owned());
    }
    if path.contains('{') {
        add(operation, "404", "No such thing");
    }
    if operation.request_body.is_some() || method == "post" {
        add(operation, "408", "The body took too long");
        add(operation, "413", "The body is longer than the limit");
    }
    if operation.request_body.is_some() {
        add(operation, "415", "The body's media type is not supported");
    }
    if method == "post" {
        add(operation, "409", "The state of the thing forbids it, or the same Idempotency-Key is still running");
        add(operation, "422", "The Idempotency-Key belongs to another body");
    }
}

/// Documents a problem unless the handler has said more about that status.
fn add(operation: &mut Operation, status: &str, text: &str) {
    let problem = ResponseBuilder::new()
        .description(text)
        .content(PROBLEM_JSON, Content::new(Some(Ref::from_schema_name("Problem"))))
        .build();
    operation.responses.responses.entry(status.to_owned()).or_insert_with(|| problem.into());
}
