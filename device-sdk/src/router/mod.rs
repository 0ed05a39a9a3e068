//! The router: which handler answers for which method and object.

#[cfg(test)]
mod tests;

use std::{
    collections::{HashMap, hash_map},
    fmt,
    sync::Arc,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use relay_core::{
    ids::{Method, ObjectId},
    request::{Body, Request, Response},
    transport::BoxFuture,
};
use serde_json::{Map, Value, json};

use crate::{
    error::StartError,
    handler::{Context, Handler, HandlerError},
};

type Erased = Arc<dyn Fn(&Request, &Context) -> BoxFuture<Result<Option<Body>, HandlerError>> + Send + Sync>;

/// Handlers by method and object.
///
/// An object is named exactly (`1.3.6.1.2.1.1.5.0`), by what it begins with (`1.3.6.1.2.1.43.*`), or not at all (`*`).
/// The most exact handler wins. A SET handler that answers nothing (`()`) is answered for by the object's GET handler,
/// since a SET is answered with the value now in force.
///
/// ```
/// use device_sdk::{HandlerError, Router, Set};
///
/// let router = Router::new()
///     .get("1.3.6.1.2.1.1.5.0", || async { Ok("printer-1") })
///     .set("1.3.6.1.2.1.1.5.0", |Set(name): Set<String>| async move {
///         if name.is_empty() { Err(HandlerError::bad_value("a name is not empty")) } else { Ok(name) }
///     });
/// ```
#[derive(Default)]
pub struct Router {
    methods: HashMap<Method, Routes>,
    wrong: Option<(Box<str>, Box<str>)>,
}

#[derive(Default)]
struct Routes {
    exact: HashMap<ObjectId, Erased>,
    /// Longest first.
    prefixes: Vec<(Box<str>, Erased)>,
    any: Option<Erased>,
}

impl Routes {
    fn find(&self, object: &ObjectId) -> Option<&Erased> {
        self.exact
            .get(object)
            .or_else(|| {
                let matching = |(prefix, _): &&(Box<str>, Erased)| object.as_str().starts_with(&**prefix);
                self.prefixes.iter().find(matching).map(|(_, handler)| handler)
            })
            .or(self.any.as_ref())
    }
}

impl fmt::Debug for Router {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map()
            .entries(self.methods.iter().map(|(method, routes)| {
                let patterns = routes.exact.keys().map(ObjectId::as_str).map(str::to_owned);
                let prefixes = routes.prefixes.iter().map(|(prefix, _)| format!("{prefix}*"));
                let any = routes.any.iter().map(|_| "*".to_owned());
                (method, patterns.chain(prefixes).chain(any).collect::<Vec<_>>())
            }))
            .finish()
    }
}

impl Router {
    /// A router that knows nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// `handler` reads `objects`.
    #[must_use]
    pub fn get<Arguments>(self, objects: &str, handler: impl Handler<Arguments>) -> Self {
        self.add(Method::get(), objects, handler)
    }

    /// `handler` writes `objects`.
    #[must_use]
    pub fn set<Arguments>(self, objects: &str, handler: impl Handler<Arguments>) -> Self {
        self.add(Method::set(), objects, handler)
    }

    /// `handler` does `method`, a word of the vendor's, with whatever objects it is asked for: `REBOOT`, say.
    #[must_use]
    pub fn method<Arguments>(self, method: &str, handler: impl Handler<Arguments>) -> Self {
        self.route(method, "*", handler)
    }

    /// `handler` does `method` with `objects`.
    #[must_use]
    pub fn route<Arguments>(mut self, method: &str, objects: &str, handler: impl Handler<Arguments>) -> Self {
        match Method::new(method) {
            Ok(method) => self.add(method, objects, handler),
            Err(error) => {
                self.wrong.get_or_insert_with(|| (method.into(), error.to_string().into()));
                self
            }
        }
    }

    fn add<Arguments>(mut self, method: Method, objects: &str, handler: impl Handler<Arguments>) -> Self {
        if let Err(why) = self.try_add(method, objects, handler) {
            self.wrong.get_or_insert_with(|| (objects.into(), why.into()));
        }
        self
    }

    fn try_add<Arguments>(
        &mut self,
        method: Method,
        objects: &str,
        handler: impl Handler<Arguments>,
    ) -> Result<(), String> {
        let twice = || "it has a handler already".to_owned();
        let handler: Erased = Arc::new(move |request, context| handler.call(request, context));
        let routes = self.methods.entry(method).or_default();
        if objects == "*" {
            return if routes.any.replace(handler).is_some() { Err(twice()) } else { Ok(()) };
        }
        if let Some(prefix) = objects.strip_suffix('*') {
            ObjectId::new(prefix).map_err(|error| error.to_string())?;
            if routes.prefixes.iter().any(|(known, _)| **known == *prefix) {
                return Err(twice());
            }
            let place = routes.prefixes.partition_point(|(known, _)| known.len() >= prefix.len());
            routes.prefixes.insert(place, (prefix.into(), handler));
            return Ok(());
        }
        match routes.exact.entry(ObjectId::new(objects).map_err(|error| error.to_string())?) {
            hash_map::Entry::Occupied(_) => Err(twice()),
            hash_map::Entry::Vacant(vacant) => {
                vacant.insert(handler);
                Ok(())
            }
        }
    }

    pub(crate) fn check(&self) -> Result<(), StartError> {
        match &self.wrong {
            Some((pattern, why)) => Err(StartError::Route { pattern: pattern.clone(), why: why.clone() }),
            None => Ok(()),
        }
    }

    /// Runs the handler for `request`, or the handlers if it names several objects.
    pub(crate) async fn answer(&self, request: &Request, context: &Context) -> Response {
        let several = request.objects.len() > 1 && (request.method.is_get() || request.method.is_set());
        let result =
            if several { self.several(request, context).await } else { self.one(request, context).await };
        match result {
            Ok(body) => Response::new(relay_core::request::Status::Ok, body),
            Err(error) => Response::error(error.status().clone(), error.words()),
        }
    }

    async fn one(&self, request: &Request, context: &Context) -> Result<Option<Body>, HandlerError> {
        let handler = self.find(&request.method, request.objects.first())?;
        let body = handler(request, context).await?;
        if body.is_some() || !request.method.is_set() {
            return Ok(body);
        }
        match self.find(&Method::get(), request.objects.first()) {
            Ok(handler) => {
                let mut request = request.clone();
                (request.method, request.body) = (Method::get(), None);
                handler(&request, context).await
            }
            Err(_) => Ok(None),
        }
    }

    fn find(&self, method: &Method, object: Option<&ObjectId>) -> Result<&Erased, HandlerError> {
        let Some(routes) = self.methods.get(method) else {
            let readable =
                self.methods.get(&Method::get()).zip(object).is_some_and(|(r, o)| r.find(o).is_some());
            return Err(if method.is_set() && readable {
                read_only()
            } else if method.is_get() || method.is_set() {
                HandlerError::unknown_object()
            } else {
                HandlerError::other("unknown-method", format!("the device has no method {method}"))
            });
        };
        let found = match object {
            Some(object) => routes.find(object),
            None => routes.any.as_ref(),
        };
        found.ok_or_else(|| {
            let readable = method.is_set() && self.find(&Method::get(), object).is_ok();
            if readable { read_only() } else { HandlerError::unknown_object() }
        })
    }

    /// Q7: body and answer are a JSON object by object name, each with its value or its error.
    async fn several(&self, request: &Request, context: &Context) -> Result<Option<Body>, HandlerError> {
        let mut values = match &request.body {
            Some(body) if request.method.is_set() => {
                serde_json::from_slice::<Map<String, Value>>(&body.bytes).map_err(|error| {
                    HandlerError::bad_value(format!("not a JSON object by object name: {error}"))
                })?
            }
            _ => Map::new(),
        };
        let mut answers = Map::new();
        for object in &request.objects {
            let mut single =
                Request::new(request.device.clone(), request.method.clone()).with_object(object.clone());
            single.traceparent.clone_from(&request.traceparent);
            let answer = if request.method.is_set() {
                match values.remove(object.as_str()) {
                    Some(value) => self.one(&single.with_body(value_to_body(value)), context).await,
                    None => Err(HandlerError::bad_value("the body has no value for this object")),
                }
            } else {
                self.one(&single, context).await
            };
            answers.insert(object.as_str().to_owned(), outcome_to_json(answer));
        }
        Ok(Some(Body::json(&Value::Object(answers))))
    }
}

fn read_only() -> HandlerError {
    HandlerError::other("read-only", "the object can be read, not set")
}

/// Strings are what they say; any other JSON value is itself.
fn value_to_body(value: Value) -> Body {
    match value {
        Value::String(text) => Body::text(text),
        other => Body::json(&other),
    }
}

fn outcome_to_json(answer: Result<Option<Body>, HandlerError>) -> Value {
    match answer {
        Err(error) => json!({ "error": error.status().as_str(), "detail": error.words() }),
        Ok(None) => json!({ "value": null }),
        Ok(Some(body)) => body_to_json(&body),
    }
}

fn body_to_json(body: &Body) -> Value {
    let json = body.content_type().starts_with("application/json");
    if let Some(value) = json.then(|| serde_json::from_slice::<Value>(&body.bytes).ok()).flatten() {
        return json!({ "value": value });
    }
    let text = body.content_type().starts_with("text/");
    match text.then(|| std::str::from_utf8(&body.bytes).ok()).flatten() {
        Some(text) => json!({ "value": text }),
        None => json!({ "value_base64": STANDARD.encode(&body.bytes), "content_type": body.content_type() }),
    }
}
