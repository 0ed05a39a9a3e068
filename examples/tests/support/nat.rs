//! A real NAT on this machine, from three network namespaces.
//!
//! ```text
//! device 10.77.0.2 ─ lan ─ 10.77.0.1 router 192.0.2.1 ─ wan ─ 192.0.2.2 outside
//!                                    │ masquerades what goes out
//!                                    └ drops every connection that comes in
//! ```
//!
//! The outside has a route to the device's network, so that it is the router that turns a call away, not the lack of
//! a way. `nf_conntrack_tcp_loose=0` keeps the router from taking up a flow in its middle: what it forgot stays
//! forgotten, as with the NATs that this stands for.
#![allow(dead_code, reason = "each test uses a part of it")]

use std::{
    fs::{self, File},
    net::Ipv4Addr,
    path::Path,
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

use rustix::{fd::AsFd, thread::LinkNameSpaceType};

/// The device, as seen on its own network only.
pub(crate) const DEVICE: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
/// The router, as seen from outside.
pub(crate) const ROUTER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// The relay and the services.
pub(crate) const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

const PREFIX: &str = "relay-nat";

const RULES: &str = "
table ip rig {
    counter inbound { }
    counter forgotten { }
    chain postrouting {
        type nat hook postrouting priority srcnat
        oifname wan masquerade
    }
    chain forward {
        type filter hook forward priority filter; policy drop
        ct state invalid counter name forgotten drop
        ct state established,related accept
        iifname lan accept
        counter name inbound drop
    }
    chain input {
        type filter hook input priority filter; policy accept
        iifname wan ct state established,related accept
        iifname wan counter name inbound drop
    }
}
";

/// Where to stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// Behind the router.
    Device,
    /// On the Internet.
    Outside,
}

impl Side {
    const fn name(self) -> &'static str {
        match self {
            Self::Device => "device",
            Self::Outside => "outside",
        }
    }
}

/// The rig. Dropped, it takes its namespaces away and kills what still runs in them.
#[derive(Debug)]
pub(crate) struct Nat {
    tag: String,
}

impl Nat {
    /// Makes the namespaces. Needs root, `ip`, `nft` and `conntrack`.
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        remove_stale();
        let nat = Self {
            tag: format!("{PREFIX}-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed)),
        };
        let [device, router, outside] = nat.namespaces();
        for namespace in [&device, &router, &outside] {
            ip(&format!("netns add {namespace}"));
            ip(&format!("-n {namespace} link set lo up"));
        }
        for (link, from, to) in [("lan", &device, &router), ("wan", &router, &outside)] {
            ip(&format!("link add {link} netns {from} type veth peer name {link} netns {to}"));
        }
        for (namespace, link, address) in [
            (&device, "lan", DEVICE),
            (&router, "lan", Ipv4Addr::new(10, 77, 0, 1)),
            (&router, "wan", ROUTER),
            (&outside, "wan", OUTSIDE),
        ] {
            ip(&format!("-n {namespace} addr add {address}/24 dev {link}"));
            ip(&format!("-n {namespace} link set {link} up"));
        }
        ip(&format!("-n {device} route add default via 10.77.0.1"));
        ip(&format!("-n {outside} route add 10.77.0.0/24 via {ROUTER}"));
        // Conntrack's settings appear in a namespace with its first rule about them.
        run(Command::new("ip").args(["netns", "exec", &router, "nft", RULES]));
        for setting in ["net.ipv4.ip_forward=1", "net.netfilter.nf_conntrack_tcp_loose=0"] {
            ip(&format!("netns exec {router} sysctl -q -w {setting}"));
        }
        nat
    }

    fn namespaces(&self) -> [String; 3] {
        ["device", "router", "outside"].map(|side| format!("{}-{side}", self.tag))
    }

    fn router(&self) -> String {
        format!("{}-router", self.tag)
    }

    /// Does `work` on a thread that stands at `side`; sockets made there stay there, threads started there too.
    pub(crate) fn at<T: Send>(&self, side: Side, work: impl FnOnce() -> T + Send) -> T {
        let namespace = format!("/run/netns/{}-{}", self.tag, side.name());
        thread::scope(|scope| {
            scope
                .spawn(move || {
                    let namespace = File::open(namespace).expect("the namespace is there");
                    rustix::thread::move_into_link_name_space(
                        namespace.as_fd(),
                        Some(LinkNameSpaceType::Network),
                    )
                    .expect("root may change its namespace");
                    work()
                })
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// A command that runs at `side`, under its own process ID.
    pub(crate) fn command(&self, side: Side, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &format!("{}-{}", self.tag, side.name())]).arg(program.as_ref());
        command
    }

    /// From now on the router lets out nothing but what goes to this port outside.
    pub(crate) fn let_out_only_to(&self, port: u16) {
        let rule = format!("insert rule ip rig forward iifname lan tcp dport != {port} drop");
        run(Command::new("ip").args(["netns", "exec", &self.router(), "nft", &rule]));
    }

    /// Makes the router forget all its flows. How many TCP flows it knew.
    pub(crate) fn forget_flows(&self) -> usize {
        let known =
            run(Command::new("ip").args(["netns", "exec", &self.router(), "conntrack", "-L", "-p", "tcp"]));
        ip(&format!("netns exec {} conntrack -F", self.router()));
        known.lines().filter(|line| line.contains("ESTABLISHED")).count()
    }

    /// How many packets of new connections from outside the router dropped.
    pub(crate) fn dropped_inbound(&self) -> u64 {
        self.counter("inbound")
    }

    /// How many packets of flows that it had forgotten the router dropped.
    pub(crate) fn dropped_forgotten(&self) -> u64 {
        self.counter("forgotten")
    }

    fn counter(&self, name: &str) -> u64 {
        let listing = run(Command::new("ip").args([
            "netns",
            "exec",
            &self.router(),
            "nft",
            "list",
            "counter",
            "ip",
            "rig",
            name,
        ]));
        listing
            .split_whitespace()
            .skip_while(|&word| word != "packets")
            .nth(1)
            .and_then(|packets| packets.parse().ok())
            .unwrap_or_else(|| panic!("nft shows no counter: {listing}"))
    }
}

impl Drop for Nat {
    fn drop(&mut self) {
        self.namespaces().iter().for_each(|namespace| remove(namespace));
    }
}

/// What runs that were killed left behind.
fn remove_stale() {
    let Ok(namespaces) = fs::read_dir("/run/netns") else { return };
    for namespace in namespaces.flatten() {
        let name = namespace.file_name().to_string_lossy().into_owned();
        let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').nth(1));
        if owner.is_some_and(|owner| !Path::new("/proc").join(owner).exists()) {
            remove(&name);
        }
    }
}

fn remove(namespace: &str) {
    // It may be half made, or gone: as much as can be done is done.
    let quietly = |arguments: &[&str]| {
        let output = Command::new("ip").args(arguments).stderr(Stdio::null()).output();
        output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default()
    };
    for process in quietly(&["netns", "pids", namespace]).lines().filter_map(|line| line.trim().parse().ok())
    {
        if let Some(process) = rustix::process::Pid::from_raw(process)
            && process != rustix::process::getpid()
        {
            let _ = rustix::process::kill_process(process, rustix::process::Signal::KILL);
        }
    }
    quietly(&["netns", "delete", namespace]);
}

fn ip(arguments: &str) {
    run(Command::new("ip").args(arguments.split_whitespace()));
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {} {errors}", output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}
