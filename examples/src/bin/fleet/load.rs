//! The fleet and the services that call it.

use std::{
    cell::Cell,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    time::Duration,
};

use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::{
    task::{JoinSet, LocalSet},
    time::Instant,
};

use crate::{http::Connection, wire};

/// How a device gives its answers.
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

/// One device and the connections that it has.
#[derive(Debug)]
struct Member {
    device: wire::Device,
    relay: bool,
    from: IpAddr,
    to: SocketAddr,
    held: Connection,
    second: Option<Connection>,
}

/// Where device number `n` calls from: a site of fifty devices to an address.
fn source(n: usize) -> IpAddr {
    let site = n / 50;
    IpAddr::from([127, 0, (site / 250) as u8, (site % 250) as u8 + 2])
}

impl Member {
    /// Connects, logs in where there is a log-in, and leaves a poll with the server.
    async fn connect(
        mut device: wire::Device,
        n: usize,
        to: SocketAddr,
        relay: bool,
    ) -> Result<Self, String> {
        let from = source(n);
        let mut held = Connection::open(from, to)
            .await
            .map_err(|error| format!("{} connecting: {error}", device.id()))?;
        if relay {
            let mut random = [0; 16];
            getrandom::fill(&mut random).map_err(|error| error.to_string())?;
            let mut next = Some(device.create(random));
            while let Some(body) = next {
                let (status, answer) = held.ask("POST /http-bind HTTP/1.1", &body).await?;
                if status != 200 {
                    return Err(format!("{}: {status} {answer}", device.id()));
                }
                next = device.advance(&answer)?;
            }
        }
        let mut member = Self { device, relay, from, to, held, second: None };
        member.poll("").await?;
        Ok(member)
    }

    async fn poll(&mut self, payload: &str) -> Result<(), String> {
        if self.relay {
            let body = self.device.body(payload);
            self.held.send("POST /http-bind HTTP/1.1", &body).await
        } else {
            self.held.send(&format!("POST /poll/{} HTTP/1.1", self.device.id()), payload).await
        }
    }

    async fn answer_by_http(&mut self, head: &str, body: &str) -> Result<(), String> {
        let second = match &mut self.second {
            Some(second) => second,
            none => {
                none.insert(Connection::open(self.from, self.to).await.map_err(|error| error.to_string())?)
            }
        };
        match second.ask(head, body).await? {
            (204, _) => Ok(()),
            (status, body) => Err(format!("{}: response met with {status} {body}", self.device.id())),
        }
    }

    /// Answers what is pushed, for ever.
    async fn serve(mut self, shape: Rc<Cell<Shape>>) -> Result<(), String> {
        loop {
            let (status, pushed) = self.held.receive().await?;
            if status != 200 {
                return Err(format!("{}: poll met with {status} {pushed}", self.device.id()));
            }
            if self.relay {
                self.serve_relay(&pushed, shape.get()).await?;
            } else {
                self.serve_bare(&pushed, shape.get()).await?;
            }
        }
    }

    async fn serve_relay(&mut self, pushed: &str, shape: Shape) -> Result<(), String> {
        if pushed.contains("type='terminate'") {
            return Err(format!("{}: {pushed}", self.device.id()));
        }
        let requests: Vec<_> = wire::iqs(pushed)
            .filter_map(|iq| Some((wire::attribute(iq, "id")?, wire::text(iq, "object")?)))
            .collect();
        let id = self.device.id();
        if shape == Shape::InSession {
            let answers: String = requests
                .iter()
                .map(|(request, object)| {
                    format!(
                        "<iq type='result' id='{request}' xmlns='jabber:client'>\
                         <value xmlns='urn:example:fleet'>{id}:{object}</value></iq>"
                    )
                })
                .collect();
            return self.poll(&answers).await;
        }
        let answers: Vec<_> = requests
            .iter()
            .map(|(request, object)| {
                let head = format!(
                    "POST /v1/requests/{request}/response HTTP/1.1\r\nAuthorization: Bearer {}\r\n\
                     Content-Type: text/plain",
                    self.device.token()
                );
                (head, format!("{id}:{object}"))
            })
            .collect();
        self.poll("").await?;
        for (head, body) in answers {
            self.answer_by_http(&head, &body).await?;
        }
        Ok(())
    }

    async fn serve_bare(&mut self, pushed: &str, shape: Shape) -> Result<(), String> {
        let (number, object) = pushed.split_once('\n').ok_or_else(|| format!("pushed: {pushed}"))?;
        let answer = format!("{}:{object}", self.device.id());
        if shape == Shape::InSession {
            return self.poll(&format!("{number}\n{answer}")).await;
        }
        self.poll("").await?;
        self.answer_by_http(&format!("POST /answer/{number} HTTP/1.1"), &answer).await
    }
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
    /// Brings all devices online. What they learned while logging in stays with `devices` for the next time.
    pub(crate) async fn connect(
        devices: &mut [wire::Device],
        to: SocketAddr,
        target: Target,
        local: &LocalSet,
    ) -> Result<Self, String> {
        let relay = matches!(target, Target::Relay { .. });
        let members: Vec<Member> = stream::iter(devices.iter().cloned().enumerate())
            .map(|(n, device)| Member::connect(device, n, to, relay))
            .buffered(LOGGING_IN)
            .try_collect()
            .await?;
        for (device, member) in devices.iter_mut().zip(&members) {
            device.clone_from(&member.device);
        }
        let shape = Rc::new(Cell::new(Shape::InSession));
        let ids = devices.iter().map(|device| device.id().to_owned()).collect();
        let mut devices = JoinSet::new();
        for member in members {
            devices.spawn_local_on(member.serve(shape.clone()), local);
        }
        Ok(Self { ids, shape, devices, to, target, calls: Cell::new(0) })
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
