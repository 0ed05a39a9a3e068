//! The fleet and the services that call it.

use std::{
    cell::Cell,
    future::Future,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    time::Duration,
};

use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::{
    task::{JoinSet, LocalSet},
    time::Instant,
};

use crate::http::Connection;

/// How a device that polls gives its answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// With its next poll.
    InSession,
    /// By an HTTP request apart, over a second connection.
    ByHttp,
}

/// What is being loaded.
#[derive(Debug, Clone)]
pub(crate) enum Target {
    Relay { key: String },
    Bare,
}

/// How many devices log in at once.
const LOGGING_IN: usize = 64;
const SERVED: Duration = Duration::from_secs(60);

/// Lets all devices come online, some at once.
pub(crate) async fn log_in<M>(
    devices: impl Iterator<Item = impl Future<Output = Result<M, String>>>,
) -> Result<Vec<M>, String> {
    stream::iter(devices).buffered(LOGGING_IN).try_collect().await
}

/// Where device number `n` calls from: a site of fifty devices to an address.
pub(crate) fn source(n: usize) -> IpAddr {
    let site = n / 50;
    IpAddr::from([127, 0, (site / 250) as u8, (site % 250) as u8 + 2])
}

/// All devices, online and answering.
#[derive(Debug)]
pub(crate) struct Fleet {
    ids: Vec<String>,
    shape: Rc<Cell<Shape>>,
    /// Ends, with the reason, as soon as a device fails.
    devices: JoinSet<Result<(), String>>,
    to: SocketAddr,
    target: Target,
    calls: Cell<usize>,
}

impl Fleet {
    /// A fleet of these devices, none of which is there yet, before the server at `to`.
    pub(crate) fn new(ids: Vec<String>, to: SocketAddr, target: Target) -> Self {
        let shape = Rc::new(Cell::new(Shape::InSession));
        Self { ids, shape, devices: JoinSet::new(), to, target, calls: Cell::new(0) }
    }

    /// How devices are to give their answers, now and later.
    pub(crate) fn shape(&self) -> Rc<Cell<Shape>> {
        Rc::clone(&self.shape)
    }

    /// A device, which answers until it fails.
    pub(crate) fn add(
        &mut self,
        device: impl Future<Output = Result<(), String>> + 'static,
        local: &LocalSet,
    ) {
        self.devices.spawn_local_on(device, local);
    }

    pub(crate) fn answer(&self, shape: Shape) {
        self.shape.set(shape);
    }

    /// Makes `count` calls, `in_flight` at once, device after device; each answer must be its own device's to its own
    /// call. How long each took, in order.
    pub(crate) async fn call(&mut self, count: usize, in_flight: usize) -> Result<Vec<Duration>, String> {
        let first = self.calls.get();
        self.calls.set(first + count);
        let next = Cell::new(first);
        let (ids, to, target, next) = (&self.ids, self.to, &self.target, &next);
        let services = stream::iter(0..in_flight)
            .map(|service| async move {
                let from = IpAddr::from([127, 0, 0, 1]);
                let mut connection = Connection::open(from, to).await.map_err(|error| error.to_string())?;
                let mut took = Vec::with_capacity(count / in_flight + 1);
                while next.get() < first + count {
                    let call = next.replace(next.get() + 1);
                    let device = &ids[call % ids.len()];
                    let start = Instant::now();
                    let (status, answer) = match target {
                        Target::Relay { key } => {
                            let head = format!(
                                "GET /v1/devices/{device}/objects/n/{call} HTTP/1.1\r\nAuthorization: Bearer {key}"
                            );
                            connection.ask(&head, "").await?
                        }
                        Target::Bare => {
                            connection.ask(&format!("POST /call/{device} HTTP/1.1"), &format!("n/{call}")).await?
                        }
                    };
                    took.push(start.elapsed());
                    if status != 200 || !holds(&answer, &format!("{device}:n/{call}")) {
                        return Err(format!("service {service}, call {call} of {device}: {status} {answer}"));
                    }
                }
                Ok::<_, String>(took)
            })
            .buffer_unordered(in_flight)
            .try_concat();
        tokio::select! {
            took = tokio::time::timeout(SERVED, services) => {
                let mut took = took.map_err(|_| "the calls took more than a minute".to_owned())??;
                took.sort_unstable();
                Ok(took)
            }
            Some(device) = self.devices.join_next() => Err(match device {
                Ok(Err(error)) => error,
                other => format!("a device stopped: {other:?}"),
            }),
        }
    }
}

/// Whether `answer` is `value`, bare or as the text of an element.
fn holds(answer: &str, value: &str) -> bool {
    let text = match answer.split_once('>') {
        Some((_, rest)) => rest.split('<').next().unwrap_or_default(),
        None => answer,
    };
    text == value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_must_be_the_value_whole() {
        assert!(holds("d1:n/2", "d1:n/2"));
        assert!(holds("<value xmlns='urn:example:fleet'>d1:n/2</value>", "d1:n/2"));
        assert!(!holds("<value xmlns='urn:example:fleet'>d1:n/21</value>", "d1:n/2"));
        assert!(!holds("", "d1:n/2"));
    }

    #[test]
    fn sites_have_addresses_of_their_own() {
        assert_eq!(source(0), source(49));
        assert_ne!(source(49), source(50));
        assert_eq!(source(5000), IpAddr::from([127, 0, 0, 102]));
    }
}
