//! A device behind a real NAT: network namespaces, a masquerading router that lets nothing in.

#[path = "support/nat.rs"]
mod rig;

use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use rig::{DEVICE, Nat, OUTSIDE, ROUTER, Side};

const SOON: Duration = Duration::from_secs(5);
/// Long enough for a packet that is let through to arrive.
const WHILE: Duration = Duration::from_millis(700);

fn is_silence(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

#[test]
fn the_router_lets_out_what_begins_inside_and_nothing_in() {
    let nat = Nat::new();
    let inside = nat.at(Side::Device, || TcpListener::bind((DEVICE, 0)).unwrap());
    let port = inside.local_addr().unwrap().port();
    for address in [DEVICE, ROUTER] {
        let call =
            nat.at(Side::Outside, || TcpStream::connect_timeout(&SocketAddr::from((address, port)), WHILE));
        assert!(is_silence(&call.unwrap_err()), "{address} is out of reach, in silence");
    }
    assert!(nat.dropped_inbound() >= 2);

    let outside = nat.at(Side::Outside, || TcpListener::bind((OUTSIDE, 0)).unwrap());
    let address = outside.local_addr().unwrap();
    let mut device = nat.at(Side::Device, || TcpStream::connect_timeout(&address, SOON).unwrap());
    let (mut server, peer) = outside.accept().unwrap();
    assert_eq!(peer.ip(), ROUTER, "masqueraded");
    device.write_all(b"hello").unwrap();
    let mut word = [0; 5];
    server.read_exact(&mut word).unwrap();
    assert_eq!(&word, b"hello");
}

#[test]
fn what_the_router_forgot_is_dead_in_both_directions_without_a_sign() {
    let nat = Nat::new();
    let outside = nat.at(Side::Outside, || TcpListener::bind((OUTSIDE, 0)).unwrap());
    let address = outside.local_addr().unwrap();
    let connect = || {
        let device = nat.at(Side::Device, || TcpStream::connect_timeout(&address, SOON).unwrap());
        let (server, _) = outside.accept().unwrap();
        for end in [&device, &server] {
            end.set_read_timeout(Some(WHILE)).unwrap();
        }
        (device, server)
    };
    let (mut pushed, mut pushing) = connect();
    let (mut asking, mut asked) = connect();

    assert_eq!(nat.forget_flows(), 2);
    let mut byte = [0];
    pushing.write_all(b"x").unwrap();
    assert!(is_silence(&pushed.read(&mut byte).unwrap_err()), "a push is lost");
    asking.write_all(b"x").unwrap();
    assert!(is_silence(&asked.read(&mut byte).unwrap_err()), "and so is a question");
    assert!(nat.dropped_forgotten() > 0);

    let (mut device, mut server) = connect();
    server.write_all(b"x").unwrap();
    device.read_exact(&mut byte).unwrap();
}
