//! Which call a method and a path are.

use std::borrow::Cow;

use http::Method;
use relay_core::ids::{AccountId, AppName, BookId, DeviceId, DocumentId, KeyId, ObjectId, RequestId};

use super::{
    page,
    problem::{Code, Problem, shown},
};

/// Who a call is for: a device by its ID, or the one that an account has (Q5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Target {
    Device(DeviceId),
    Account(AccountId),
}

/// A call of the API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Route {
    Page(&'static page::Asset),
    Bosh,
    WebSocket,
    Health,
    Ready,
    Metrics,
    Enroll,
    Import,
    Devices,
    Events,
    Keys,
    NewKey,
    RevokeKey(KeyId),
    Register(DeviceId),
    Alive(DeviceId),
    NewPin(DeviceId),
    Device(Target),
    GetObject(Target, ObjectId),
    SetObject(Target, ObjectId),
    Requests(Target),
    Respond(RequestId),
    Job(Target, AppName),
    JobData(RequestId),
    Request(RequestId),
    RequestResult(RequestId),
    ResumeUpload(RequestId),
    CancelRequest(RequestId),
    Documents,
    GetDocument(DocumentId),
    PutDocument(DocumentId),
    DeleteDocument(DocumentId),
    Agree(AccountId, DeviceId),
    Withdraw(AccountId, DeviceId),
    GetBook(BookId),
    PutBook(BookId),
}

/// Whether `path` is one whose every answer says how far a request came (L1).
pub(super) fn is_call(path: &str) -> bool {
    let mut segments = path.split('/').skip(1);
    segments.next() == Some("v1")
        && matches!(segments.next(), Some("devices" | "accounts"))
        && segments.next().is_some()
        && matches!(segments.next(), Some("objects" | "requests" | "apps"))
}

/// Finds the call.
///
/// # Errors
/// 404 for a path that is none, 405 for a method that is none of its, 400 for a name that is none.
pub(super) fn find(method: &Method, path: &str) -> Result<Route, Problem> {
    let Some(rest) = path.strip_prefix('/') else { return Err(nowhere()) };
    let mut rest = Some(rest);
    match (segment(&mut rest).unwrap_or(""), segment(&mut rest), rest) {
        // With and without a trailing slash: clients differ.
        ("http-bind", None | Some(""), None) => Ok(Route::Bosh),
        ("ws", None | Some(""), None) => get(method, Route::WebSocket),
        // The channels of apps: whose paths those are, their table says.
        ("ws", Some(_), _) => get(method, Route::WebSocket),
        ("", None, None) => get(method, Route::Page(&page::INDEX)),
        ("console", Some(name), None) => get(method, Route::Page(page::asset(name).ok_or_else(nowhere)?)),
        ("healthz", None, None) => get(method, Route::Health),
        ("readyz", None, None) => get(method, Route::Ready),
        ("metrics", None, None) => get(method, Route::Metrics),
        ("v1", Some(kind), rest) => v1(method, kind, rest),
        _ => Err(nowhere()),
    }
}

/// Takes the next segment off a path.
fn segment<'p>(rest: &mut Option<&'p str>) -> Option<&'p str> {
    let path = (*rest)?;
    let (segment, after) = match path.bytes().position(|byte| byte == b'/') {
        Some(at) => (&path[..at], Some(&path[at + 1..])),
        None => (path, None),
    };
    *rest = after;
    Some(segment)
}

fn v1(method: &Method, kind: &str, mut rest: Option<&str>) -> Result<Route, Problem> {
    let segments = [segment(&mut rest), segment(&mut rest), rest];
    let count = segments.iter().flatten().count();
    let segments = segments.map(Option::unwrap_or_default);
    match (kind, &segments[..count]) {
        ("enroll", []) => only(method, &Method::POST, "POST", || Ok(Route::Enroll)),
        ("keys", []) => match *method {
            Method::GET | Method::HEAD => Ok(Route::Keys),
            Method::POST => Ok(Route::NewKey),
            _ => Err(Problem::not_allowed("GET, POST")),
        },
        ("keys", [id]) => {
            only(method, &Method::DELETE, "DELETE", || Ok(Route::RevokeKey(name(id, KeyId::new)?)))
        }
        ("devices", []) => get(method, Route::Devices),
        ("events", []) => get(method, Route::Events),
        // Nothing is posted to a device itself, so one may be called "import".
        ("devices", ["import"]) if method == Method::POST => Ok(Route::Import),
        ("devices", [id]) => match *method {
            Method::GET | Method::HEAD => Ok(Route::Device(Target::Device(name(id, DeviceId::new)?))),
            Method::PUT => Ok(Route::Register(name(id, DeviceId::new)?)),
            _ => Err(Problem::not_allowed("GET, PUT")),
        },
        ("devices", [id, "alive"]) => {
            only(method, &Method::POST, "POST", || Ok(Route::Alive(name(id, DeviceId::new)?)))
        }
        ("devices", [id, "pin"]) => {
            only(method, &Method::POST, "POST", || Ok(Route::NewPin(name(id, DeviceId::new)?)))
        }
        ("devices", [id, "requests"]) => only(method, &Method::POST, "POST", || {
            Ok(Route::Requests(Target::Device(name(id, DeviceId::new)?)))
        }),
        ("devices", [id, "objects", object]) => {
            object_call(method, || Ok(Target::Device(name(id, DeviceId::new)?)), object)
        }
        ("accounts", [id]) => match *method {
            Method::GET | Method::HEAD => Ok(Route::Device(Target::Account(name(id, AccountId::new)?))),
            _ => Err(Problem::not_allowed("GET")),
        },
        ("accounts", [id, "requests"]) => only(method, &Method::POST, "POST", || {
            Ok(Route::Requests(Target::Account(name(id, AccountId::new)?)))
        }),
        ("accounts", [id, "objects", object]) => {
            object_call(method, || Ok(Target::Account(name(id, AccountId::new)?)), object)
        }
        ("accounts", [account, "devices", device]) => {
            let names = || Ok::<_, Problem>((name(account, AccountId::new)?, name(device, DeviceId::new)?));
            match *method {
                Method::PUT => names().map(|(account, device)| Route::Agree(account, device)),
                Method::DELETE => names().map(|(account, device)| Route::Withdraw(account, device)),
                _ => Err(Problem::not_allowed("PUT, DELETE")),
            }
        }
        ("address-books", [book]) => match *method {
            Method::GET | Method::HEAD => Ok(Route::GetBook(name(book, BookId::new)?)),
            Method::PUT => Ok(Route::PutBook(name(book, BookId::new)?)),
            _ => Err(Problem::not_allowed("GET, PUT")),
        },
        ("devices", [id, "apps", app]) => only(method, &Method::POST, "POST", || {
            Ok(Route::Job(Target::Device(name(id, DeviceId::new)?), name(app, AppName::new)?))
        }),
        ("accounts", [id, "apps", app]) => only(method, &Method::POST, "POST", || {
            Ok(Route::Job(Target::Account(name(id, AccountId::new)?), name(app, AppName::new)?))
        }),
        ("documents", []) => get(method, Route::Documents),
        ("documents", [id]) => match *method {
            Method::GET | Method::HEAD => Ok(Route::GetDocument(name(id, DocumentId::new)?)),
            Method::PUT => Ok(Route::PutDocument(name(id, DocumentId::new)?)),
            Method::DELETE => Ok(Route::DeleteDocument(name(id, DocumentId::new)?)),
            _ => Err(Problem::not_allowed("GET, PUT, DELETE")),
        },
        ("requests", [id, "response"]) => {
            only(method, &Method::POST, "POST", || Ok(Route::Respond(request(id)?)))
        }
        ("requests", [id, "body"]) => only(method, &Method::GET, "GET", || Ok(Route::JobData(request(id)?))),
        ("requests", [id, "result"]) => get(method, Route::RequestResult(request(id)?)),
        ("requests", [id]) => match *method {
            Method::GET | Method::HEAD => Ok(Route::Request(request(id)?)),
            Method::PATCH => Ok(Route::ResumeUpload(request(id)?)),
            Method::DELETE => Ok(Route::CancelRequest(request(id)?)),
            _ => Err(Problem::not_allowed("GET, PATCH, DELETE")),
        },
        _ => Err(nowhere()),
    }
}

fn nowhere() -> Problem {
    Problem::new(Code::NotFound, "there is nothing at this path")
}

fn get(method: &Method, route: Route) -> Result<Route, Problem> {
    match *method {
        Method::GET | Method::HEAD => Ok(route),
        _ => Err(Problem::not_allowed("GET")),
    }
}

fn only(
    method: &Method,
    allowed: &Method,
    words: &'static str,
    route: impl FnOnce() -> Result<Route, Problem>,
) -> Result<Route, Problem> {
    if method == allowed { route() } else { Err(Problem::not_allowed(words)) }
}

fn object_call(
    method: &Method,
    target: impl FnOnce() -> Result<Target, Problem>,
    object: &str,
) -> Result<Route, Problem> {
    let route = match *method {
        Method::GET => Route::GetObject,
        Method::PUT => Route::SetObject,
        _ => return Err(Problem::not_allowed("GET, PUT")),
    };
    Ok(route(target()?, name(object, ObjectId::new)?))
}

/// What cannot be an ID is the ID of nothing; whoever names it is to hear that this is final.
fn request(id: &str) -> Result<RequestId, Problem> {
    let id = decode(id).ok().and_then(|id| RequestId::new(&id).ok());
    id.ok_or_else(|| Problem::new(Code::UnknownRequest, "no such request"))
}

fn name<T>(
    text: &str,
    new: impl FnOnce(&str) -> Result<T, relay_core::ids::InvalidId>,
) -> Result<T, Problem> {
    Ok(new(&decode(text)?)?)
}

/// Undoes percent-encoding, once.
pub(super) fn decode(text: &str) -> Result<Cow<'_, str>, Problem> {
    if !text.contains('%') {
        return Ok(Cow::Borrowed(text));
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digit = |at: usize| rest.get(at).and_then(|&b| char::from(b).to_digit(16));
        let (Some(high), Some(low)) = (digit(0), digit(1)) else {
            return Err(Problem::bad("a % in the target is not followed by two hexadecimal digits"));
        };
        bytes.push((high * 16 + low) as u8);
        rest = &rest[2..];
    }
    String::from_utf8(bytes)
        .map(Cow::Owned)
        .map_err(|_| Problem::bad("the target is not UTF-8 once percent-decoded"))
}

/// The pairs of a query, decoded.
pub(super) struct Query(Vec<(String, String)>);

/// Names of parameters under which people put secrets. A target is logged by everything that it passes.
const SECRETS: [&str; 10] = [
    "token",
    "access_token",
    "auth",
    "authorization",
    "bearer",
    "key",
    "api_key",
    "apikey",
    "password",
    "pin",
];

impl Query {
    /// Reads the query of a target.
    ///
    /// # Errors
    /// 400 if it cannot be decoded, or carries what looks like a secret (T44).
    pub(super) fn read(query: Option<&str>) -> Result<Self, Problem> {
        let mut pairs = Vec::new();
        for pair in query.unwrap_or("").split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let plain = |text: &str| decode(&text.replace('+', " ")).map(Cow::into_owned);
            let key = plain(key)?;
            if SECRETS.iter().any(|secret| key.eq_ignore_ascii_case(secret)) {
                return Err(Problem::bad(format!(
                    "the query has {}: a secret does not belong in a URL, send it as Authorization: Bearer",
                    shown(&key)
                )));
            }
            pairs.push((key, plain(value)?));
        }
        Ok(Self(pairs))
    }

    /// The values of `key`, taken out.
    pub(super) fn take_all(&mut self, key: &str) -> Vec<String> {
        self.0.extract_if(.., |(name, _)| name == key).map(|(_, value)| value).collect()
    }

    /// The value of `key`, taken out; an empty one is none.
    pub(super) fn take(&mut self, key: &str) -> Result<Option<String>, Problem> {
        let mut values = self.take_all(key);
        match values.len() {
            0 | 1 => Ok(values.pop().filter(|value| !value.is_empty())),
            _ => Err(Problem::bad(format!("the query has {} more than once", shown(key)))),
        }
    }

    /// All that nobody took.
    pub(super) fn rest(self) -> Vec<(String, String)> {
        self.0
    }

    /// Refuses what nobody took: a misspelt filter would silently find everything.
    pub(super) fn finish(self) -> Result<(), Problem> {
        match self.0.first() {
            None => Ok(()),
            Some((key, _)) => {
                Err(Problem::bad(format!("the query has {}, which means nothing here", shown(key))))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(id: &str) -> DeviceId {
        DeviceId::new(id).unwrap()
    }

    #[test]
    fn an_object_is_the_rest_of_the_path() {
        let object = |path: &str| match find(&Method::GET, path) {
            Ok(Route::GetObject(Target::Device(id), object)) if id == device("d") => {
                object.as_str().to_owned()
            }
            other => panic!("{path}: {other:?}"),
        };
        assert_eq!(object("/v1/devices/d/objects/1.3.6"), "1.3.6");
        assert_eq!(object("/v1/devices/d/objects/a/b//c/"), "a/b//c/");
        assert_eq!(object("/v1/devices/d/objects/a%2Fb%2fc"), "a/b/c");
        assert_eq!(object("/v1/devices/d/objects/objects/requests"), "objects/requests");
    }

    #[test]
    fn t45_names_that_are_none_are_refused() {
        for (path, code) in [
            ("/v1/devices/%2e%2e", Code::BadRequest),
            ("/v1/devices/a%00b", Code::BadRequest),
            ("/v1/devices/a%", Code::BadRequest),
            ("/v1/devices/a%zz", Code::BadRequest),
            ("/v1/devices/%ff", Code::BadRequest),
            ("/v1/devices/a%5cb", Code::BadRequest),
            ("/v1/address-books/%2e%2e", Code::BadRequest),
            ("/v1/address-books/a%2Fb", Code::BadRequest),
            ("/v1/address-books/%00", Code::BadRequest),
            ("/v1/address-books/", Code::BadRequest),
            ("/v1/address-books/a/b", Code::NotFound),
            ("/v1/address-books", Code::NotFound),
            ("/v1/documents/%2e%2e", Code::BadRequest),
            ("/v1/documents/..%2f..%2fetc%2fpasswd", Code::BadRequest),
            ("/v1/documents/a%5cb", Code::BadRequest),
            ("/v1/documents/a%00", Code::BadRequest),
            ("/v1/documents/", Code::BadRequest),
            ("/v1/documents/a/b", Code::NotFound),
            ("/v1/devices/d/objects/", Code::BadRequest),
            ("/v1/devices/d/objects/a b", Code::BadRequest),
            ("/v1/devices/d/objects", Code::NotFound),
            ("/v1/devices/d/nothing", Code::NotFound),
            ("/v2/devices", Code::NotFound),
            ("/http-bind/x", Code::NotFound),
            ("//v1/devices", Code::NotFound),
            ("", Code::NotFound),
            ("*", Code::NotFound),
        ] {
            assert_eq!(find(&Method::GET, path).unwrap_err().code(), code, "{path}");
        }
    }

    #[test]
    fn t7_what_is_no_request_id_is_the_id_of_nothing() {
        for id in ["%00", "%ff", "a%20b", "%", &"x".repeat(65), ".."] {
            for (method, rest) in
                [(Method::POST, "/response"), (Method::GET, "/body"), (Method::GET, ""), (Method::PATCH, "")]
            {
                let error = find(&method, &format!("/v1/requests/{id}{rest}")).unwrap_err();
                assert_eq!(error.code(), Code::UnknownRequest, "{id}{rest}");
            }
        }
    }

    #[test]
    fn t44_a_secret_in_the_query_is_refused() {
        assert!(Query::read(Some("a=1&Token=x")).is_err());
        assert!(Query::read(Some("%74oken=x")).is_err());
        let mut query = Query::read(Some("name=a+b%2B&object=1&object=2&")).unwrap();
        assert_eq!(query.take("name").ok().flatten().as_deref(), Some("a b+"));
        assert!(query.take("object").is_err());
        let mut query = Query::read(Some("object=1&object=2&x")).unwrap();
        assert_eq!(query.take_all("object"), ["1", "2"]);
        assert!(query.finish().is_err());
    }

    #[test]
    fn calls_are_known_by_their_path() {
        assert!(is_call("/v1/devices/d/objects/x"));
        assert!(is_call("/v1/accounts/a/requests"));
        assert!(!is_call("/v1/devices/objects"));
        assert!(!is_call("/v1/requests/x/response"));
    }
}
