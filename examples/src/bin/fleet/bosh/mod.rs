//! Devices that poll: of the relay over BOSH, of the bare forwarder as it wants it.

pub(crate) mod wire;

use std::{
    cell::Cell,
    net::{IpAddr, SocketAddr},
    rc::Rc,
};

use tokio::task::LocalSet;

use crate::{
    http::Connection,
    load::{self, Fleet, Shape, Target, source},
    xml,
};

/// Brings all devices online. What they learned while logging in stays with `devices` for the next time.
pub(crate) async fn connect(
    devices: &mut [wire::Device],
    to: SocketAddr,
    target: Target,
    local: &LocalSet,
) -> Result<Fleet, String> {
    let relay = matches!(target, Target::Relay { .. });
    let members = load::log_in(
        devices.iter().cloned().enumerate().map(|(n, device)| Member::connect(device, n, to, relay)),
    )
    .await?;
    for (device, member) in devices.iter_mut().zip(&members) {
        device.clone_from(&member.device);
    }
    let ids = devices.iter().map(|device| device.id().to_owned()).collect();
    let mut fleet = Fleet::new(ids, to, target);
    for member in members {
        let shape = fleet.shape();
        fleet.add(member.serve(shape), local);
    }
    Ok(fleet)
}

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
            .filter_map(|iq| Some((xml::attribute(iq, "id")?, xml::text(iq, "object")?)))
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
