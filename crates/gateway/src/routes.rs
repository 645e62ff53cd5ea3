//! All routes and the layers around them, in one place.
//!
//! A route belongs to one of three groups, and the group's layer is its access rule: nobody can add a route and forget
//! the rule. The document is made from the same groups.

pub(crate) mod documents;
pub(crate) mod inference;
pub(crate) mod models;
pub(crate) mod nodes;
pub(crate) mod probes;
pub(crate) mod status;
pub(crate) mod tokens;
pub(crate) mod training;
pub(crate) mod training_audit;
pub(crate) mod training_events;

use std::sync::Arc;

use axum::Router;
use axum::extract::{FromRequest, FromRequestParts, Query, Request, State};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use http::request::Parts;
use http::{HeaderName, HeaderValue, Method, Uri, header};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::{AllowOrigin, CorsLayer};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::app::App;
use crate::body::{self, Share};
use crate::config::GatewayConfig;
use crate::problem::{self, Fault, Problem};
use crate::{auth, guard, idempotency, limits, metrics};

/// The documented routes by access rule.
pub(crate) struct Groups {
    /// Nobody is asked for a key.
    pub(crate) public: OpenApiRouter<Arc<App>>,
    /// A key, unless `public_metrics`.
    pub(crate) figures: OpenApiRouter<Arc<App>>,
    /// Any known caller.
    pub(crate) client: OpenApiRouter<Arc<App>>,
    /// Admins.
    pub(crate) admin: OpenApiRouter<Arc<App>>,
}

/// Every documented route, with or without those of inference.
pub(crate) fn groups(mount_inference: bool) -> Groups {
    let client = if mount_inference {
        OpenApiRouter::default()
            .routes(routes!(inference::submit))
            .routes(routes!(inference::result))
            .routes(routes!(inference::request_status))
    } else {
        OpenApiRouter::default()
    };
    Groups {
        public: OpenApiRouter::default()
            .routes(routes!(probes::healthz))
            .routes(routes!(probes::readyz))
            .routes(routes!(documents::explain_problem)),
        figures: OpenApiRouter::default().routes(routes!(status::status)).routes(routes!(probes::metrics)),
        client: client
            .routes(routes!(training::create))
            .routes(routes!(training::status))
            .routes(routes!(training::jobs))
            .routes(routes!(training::cancel))
            .routes(routes!(training::model))
            .routes(routes!(training_audit::record))
            .routes(routes!(training_audit::update))
            .routes(routes!(training_events::events))
            .routes(routes!(models::list))
            .routes(routes!(models::show))
            .routes(routes!(models::download))
            .routes(routes!(nodes::declare))
            .routes(routes!(nodes::participants))
            .routes(routes!(nodes::nodes))
            .routes(routes!(documents::openapi)),
        admin: OpenApiRouter::default()
            .routes(routes!(models::register))
            .routes(routes!(models::upload))
            .routes(routes!(nodes::revoke))
            .routes(routes!(tokens::create, tokens::list))
            .routes(routes!(tokens::revoke)),
    }
}

/// The whole service.
pub(crate) fn router(app: Arc<App>) -> Router {
    let groups = groups(app.config.mount_inference);
    let figures = from_fn_with_state(Arc::clone(&app), auth::require_client_unless_public);
    let router: Router<Arc<App>> = Router::new()
        .merge(Router::from(groups.public))
        .merge(Router::from(groups.figures).route_layer(figures))
        .merge(Router::from(groups.client).route_layer(from_fn(auth::require_client)))
        .merge(documents::swagger().route_layer(from_fn(auth::require_client)))
        .merge(Router::from(groups.admin).route_layer(from_fn(auth::require_admin)))
        .method_not_allowed_fallback(method_not_allowed)
        .fallback(not_found);
    let cors = cors(&app.config);
    // Last = outermost: what is written below sees a request first.
    router
        .layer(from_fn_with_state(Arc::clone(&app), idempotency::replay))
        .layer(from_fn_with_state(Arc::clone(&app), limits::admit))
        .layer(from_fn_with_state(Arc::clone(&app), auth::authenticate))
        .layer(cors)
        .layer(from_fn_with_state(Arc::clone(&app), guard::check_names))
        .layer(from_fn_with_state(Arc::clone(&app), metrics::measure))
        .layer(CatchPanicLayer::custom(panicked))
        .layer(from_fn(problem::name_instance))
        .layer(from_fn(harden))
        .with_state(app)
}

fn cors(config: &GatewayConfig) -> CorsLayer {
    let origins: Vec<HeaderValue> =
        config.cors_origins.iter().filter_map(|o| HeaderValue::from_str(o.trim_end_matches('/')).ok()).collect();
    CorsLayer::new()
        .allow_origin(AllowOrigin::list(origins))
        .allow_methods([Method::GET, Method::POST, Method::PUT, Method::DELETE])
        .allow_headers([
            header::AUTHORIZATION,
            header::CONTENT_TYPE,
            HeaderName::from_static("x-api-key"),
            HeaderName::from_static("idempotency-key"),
            HeaderName::from_static("last-event-id"),
        ])
        .expose_headers([header::RETRY_AFTER, idempotency::REPLAYED.clone()])
}

/// Answers are data, never to be guessed into something a browser would run.
async fn harden(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

fn panicked(panic: Box<dyn std::any::Any + Send + 'static>) -> Response {
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("a panic without text");
    Problem::internal(&text).into_response()
}

async fn not_found(uri: Uri) -> Problem {
    Problem::not_found(format!(
        "there is nothing at {}: the API lives under /v1/federated, and /docs lists its routes",
        uri.path()
    ))
}

async fn method_not_allowed(method: Method, uri: Uri) -> Problem {
    Problem::method_not_allowed(&method, uri.path())
}

/// Extractor: a bounded JSON object, and its share of the memory for bodies, which is given back when the handler ends.
pub(crate) struct JsonObject(pub(crate) Map<String, Value>, #[expect(dead_code, reason = "held, not read")] Share);

impl FromRequest<Arc<App>> for JsonObject {
    type Rejection = Problem;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, Problem> {
        body::require_json(request.headers())?;
        let (bytes, share) = app.bodies.read(request.into_body()).await?;
        Ok(Self(body::parse_object(&bytes)?, share))
    }
}

/// Extractor: the body of a request that takes no fields: nothing, or `{}`. What is sent and ignored would be a promise
/// that nobody keeps.
pub(crate) struct NoFields;

impl FromRequest<Arc<App>> for NoFields {
    type Rejection = Problem;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, Problem> {
        let (bytes, _share) = app.bodies.read(request.into_body()).await?;
        if bytes.trim_ascii().is_empty() {
            return Ok(Self);
        }
        let fields = body::parse_object(&bytes)?;
        let unknown = |name: &String| {
            let text = format!("unknown field `{name}`: this request takes no fields");
            Fault::new(body::pointer(name), text)
        };
        if fields.is_empty() { Ok(Self) } else { Err(Problem::faults(fields.keys().map(unknown).collect())) }
    }
}

/// Extractor: query parameters, whose faults are problem documents.
pub(crate) struct Params<T>(pub(crate) T);

impl<T: DeserializeOwned> FromRequestParts<Arc<App>> for Params<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<App>) -> Result<Self, Problem> {
        Query::<T>::try_from_uri(&parts.uri).map(|query| Self(query.0)).map_err(|e| {
            Problem::faults(vec![Fault::new(
                format!("?{}", parts.uri.query().unwrap_or("")),
                std::error::Error::source(&e).map_or_else(|| e.to_string(), ToString::to_string),
            )])
        })
    }
}

/// Extractor: who calls. Only behind a group that requires somebody.
pub(crate) struct Caller(pub(crate) auth::Principal);

impl FromRequestParts<Arc<App>> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<App>) -> Result<Self, Problem> {
        parts
            .extensions
            .get()
            .cloned()
            .map(Self)
            .ok_or_else(|| Problem::internal(&"a route that needs a caller is in the public group"))
    }
}

/// The application state in handlers.
pub(crate) type Shared = State<Arc<App>>;
