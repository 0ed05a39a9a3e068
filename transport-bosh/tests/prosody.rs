//! The client end against a server that is not ours: Prosody, as Debian installs it.

use std::{
    net::TcpListener,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use relay_core::{auth::Secret, error::ErrorKind, transport::EndReason, xml::Element};
use transport_bosh::{
    client::{Account, ClientSettings, End, XmppClient, XmppSession},
    exchange::{Exchange, ExchangeError, ExchangeErrorKind, Post, Reply},
    http::{HttpSettings, Proxy, ReqwestExchange},
    wire::ns,
};

const APP: &str = "urn:example:app";
const PATIENCE: Duration = Duration::from_secs(20);

/// A Prosody of this test's own.
struct Prosody {
    folder: tempfile::TempDir,
    port: u16,
    child: Option<Child>,
}

impl Prosody {
    /// Starts it, with the accounts `device` and `service` on both of its hosts.
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        for name in ["data", "certs"] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
        }
        let config = include_str!("prosody/prosody.cfg.lua")
            .replace("@FOLDER@", folder.path().to_str().unwrap())
            .replace("@PORT@", &port.to_string());
        std::fs::write(folder.path().join("prosody.cfg.lua"), config).unwrap();
        let mut prosody = Self { folder, port, child: None };
        for host in ["localhost", "old.localhost"] {
            for user in ["device", "service"] {
                let registered = prosody
                    .command("prosodyctl")
                    .args(["register", user, host, "a password"])
                    .stdout(Stdio::null())
                    .status()
                    .unwrap();
                assert!(registered.success(), "{user}@{host}: {registered}");
            }
        }
        prosody.resume().await;
        prosody
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        if program == "prosodyctl" {
            command.arg("--root");
        }
        command.arg("--config").arg(self.folder.path().join("prosody.cfg.lua"));
        command
    }

    /// Starts the server (again) on the same port and folder, and waits until it answers.
    async fn resume(&mut self) {
        let child = self.command("prosody").stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        self.child = Some(child.expect("prosody is installed"));
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while tokio::net::TcpStream::connect(("127.0.0.1", self.port)).await.is_err() {
            let log = std::fs::read_to_string(self.folder.path().join("prosody.log")).unwrap_or_default();
            assert!(tokio::time::Instant::now() < deadline, "prosody does not listen:\n{log}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    fn exchange(&self) -> Arc<Losing> {
        let mut settings = HttpSettings::new(format!("http://127.0.0.1:{}/http-bind", self.port));
        settings.proxy = Proxy::Direct;
        Arc::new(Losing {
            inner: ReqwestExchange::new(settings).unwrap(),
            armed: AtomicU32::new(0),
            lost: AtomicU32::new(0),
        })
    }

    fn settings(host: &str, wait: u64) -> ClientSettings {
        let mut settings = ClientSettings::new(host);
        settings.wait = Duration::from_secs(wait);
        settings
    }

    async fn log_in(&self, user: &str, wait: u64) -> (XmppSession, Arc<Losing>) {
        let exchange = self.exchange();
        let client =
            XmppClient::over(Arc::clone(&exchange) as Arc<dyn Exchange>, Self::settings("localhost", wait));
        let account = Account::new(user, Secret::new("a password")).with_resource("r");
        (client.log_in(account, PATIENCE).await.unwrap(), exchange)
    }
}

impl Drop for Prosody {
    fn drop(&mut self) {
        if self.child.is_some() {
            self.kill();
        }
    }
}

/// Loses answers that carry something of the application's, after they were received, as often as it is told to.
#[derive(Debug)]
struct Losing {
    inner: ReqwestExchange,
    armed: AtomicU32,
    lost: AtomicU32,
}

impl Losing {
    fn lose(&self, count: u32) {
        self.armed.store(count, Ordering::SeqCst);
    }

    fn lost(&self) -> u32 {
        self.lost.load(Ordering::SeqCst)
    }
}

#[async_trait]
impl Exchange for Losing {
    async fn post(&self, post: Post) -> Result<Reply, ExchangeError> {
        let reply = self.inner.post(post).await?;
        let carries = reply.body.windows(APP.len()).any(|window| window == APP.as_bytes());
        let armed = |left: u32| left.checked_sub(1);
        if carries && self.armed.fetch_update(Ordering::SeqCst, Ordering::SeqCst, armed).is_ok() {
            self.lost.fetch_add(1, Ordering::SeqCst);
            return Err(ExchangeError::new(ExchangeErrorKind::Interrupted, "lost on the way"));
        }
        Ok(reply)
    }

    fn is_confidential(&self) -> bool {
        self.inner.is_confidential()
    }
}

/// Answers every `<count/>` with how many of them came, until the session ends.
async fn serve(mut device: XmppSession, count: Arc<AtomicU32>) -> XmppSession {
    while let Some(stanza) = device.receive().await {
        if !stanza.is(ns::CLIENT, "iq") || stanza.child(APP, "count").is_none() {
            continue;
        }
        let nth = count.fetch_add(1, Ordering::SeqCst) + 1;
        let answer = Element::new(ns::CLIENT, "iq")
            .with_attr("type", "result")
            .with_attr("id", stanza.attr("id").unwrap())
            .with_attr("to", stanza.attr("from").unwrap())
            .with_child(Element::new(APP, "count").with_text(nth.to_string()));
        if device.send(answer).await.is_err() {
            break;
        }
    }
    device
}

/// Asks `to` for a count and waits for it.
async fn ask(service: &mut XmppSession, to: &str, id: &str) -> u32 {
    let question = Element::new(ns::CLIENT, "iq")
        .with_attr("type", "get")
        .with_attr("id", id.to_owned())
        .with_attr("to", to.to_owned())
        .with_child(Element::new(APP, "count"));
    service.send(question).await.unwrap();
    let answered = async {
        loop {
            let stanza = service.receive().await.expect("the session lives");
            if stanza.attr("id") == Some(id) {
                assert_eq!(stanza.attr("type"), Some("result"), "{}", stanza.to_document());
                return stanza.child(APP, "count").unwrap().text().parse().unwrap();
            }
        }
    };
    tokio::time::timeout(PATIENCE, answered).await.expect("an answer comes")
}

#[tokio::test]
async fn x6_logs_in_by_either_scram_and_adopts_the_jid_it_is_given() {
    let prosody = Prosody::start().await;
    for host in ["localhost", "old.localhost"] {
        let exchange = prosody.exchange();
        let client = XmppClient::over(exchange, Prosody::settings(host, 2));
        let account = Account::new("device", Secret::new("a password")).with_resource("r");
        let session = client.log_in(account, PATIENCE).await.unwrap();
        assert_eq!(session.jid(), format!("device@{host}/r"));
        session.close().await;

        let chosen =
            client.log_in(Account::new("device", Secret::new("a password")), PATIENCE).await.unwrap();
        assert!(chosen.jid().starts_with(&format!("device@{host}/")), "{}", chosen.jid());
        chosen.close().await;
    }
}

#[tokio::test]
async fn t14_a_wrong_password_is_refused_and_nothing_else_is_tried() {
    let prosody = Prosody::start().await;
    let client = XmppClient::over(prosody.exchange(), Prosody::settings("localhost", 2));
    for user in ["device", "nobody"] {
        let error = client.log_in(Account::new(user, Secret::new("wrong")), PATIENCE).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Unauthenticated, "{error:?}");
    }
    let client = XmppClient::over(prosody.exchange(), Prosody::settings("unserved.example", 2));
    let error = client.log_in(Account::new("device", Secret::new("wrong")), PATIENCE).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unsupported, "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_over_wait_cycles_lost_answers_and_a_restart_of_the_server() {
    let mut prosody = Prosody::start().await;
    let (device, losing) = prosody.log_in("device", 1).await;
    let device_jid = device.jid().to_owned();
    let count = Arc::new(AtomicU32::new(0));
    let serving = tokio::spawn(serve(device, Arc::clone(&count)));
    let (mut service, service_losing) = prosody.log_in("service", 2).await;

    assert_eq!(ask(&mut service, &device_jid, "q1").await, 1);

    // The answer that carried the question to the device is lost; then the one that carried the count back.
    losing.lose(1);
    assert_eq!(ask(&mut service, &device_jid, "q2").await, 2);
    service_losing.lose(1);
    assert_eq!(ask(&mut service, &device_jid, "q3").await, 3);
    // Both at once, and the repeat of the first as well.
    losing.lose(2);
    service_losing.lose(1);
    assert_eq!(ask(&mut service, &device_jid, "q4").await, 4);
    assert_eq!((losing.lost(), service_losing.lost()), (3, 2));

    // The other client's session counts the seconds: each of its waits ends with an empty answer.
    let cycles = 20;
    let before = service.stats();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(120);
    while service.stats().empty_answers < before.empty_answers + cycles {
        assert!(tokio::time::Instant::now() < deadline, "waits do not end: {:?}", service.stats());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let after = service.stats();
    assert_eq!(after.failures, before.failures, "a wait cycle failed: {after:?}");
    assert_eq!(ask(&mut service, &device_jid, "q5").await, 5);

    prosody.kill();
    prosody.resume().await;
    let device = tokio::time::timeout(PATIENCE, serving).await.expect("the device notices").unwrap();
    let end = device.end().expect("the session is over");
    assert_eq!(end.reason(), EndReason::Expired, "{end:?}");
    let device_stats = device.stats();
    while service.receive().await.is_some() {}
    assert!(matches!(service.end(), Some(End::Condition(_))), "{:?}", service.end());

    let (device, _) = prosody.log_in("device", 1).await;
    let serving = tokio::spawn(serve(device, Arc::clone(&count)));
    let (mut service, _) = prosody.log_in("service", 1).await;
    assert_eq!(ask(&mut service, &device_jid, "q6").await, 6);

    println!("the device's session before the restart: {device_stats:?}");
    println!(
        "the other client's session before the restart: {after:?}, of which {cycles} empty ones in a row"
    );
    println!("answers lost: {} and {}; questions answered: {}", 3, 2, count.load(Ordering::SeqCst));
    assert_eq!(count.load(Ordering::SeqCst), 6, "every question reached the device once");
    assert!(device_stats.repeats >= 3 && device_stats.empty_answers >= cycles, "{device_stats:?}");
    serving.abort();
    service.close().await;
}
