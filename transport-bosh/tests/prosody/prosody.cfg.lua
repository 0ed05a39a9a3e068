-- A server of a test: everything it writes stays in the folder of the test, and it listens on loopback alone.
daemonize = false
run_as_root = true
pidfile = "@FOLDER@/prosody.pid"
data_path = "@FOLDER@/data"
certificates = "@FOLDER@/certs"
log = { info = "@FOLDER@/prosody.log" }

modules_enabled = { "saslauth", "bosh", "presence", "message", "iq" }
modules_disabled = { "s2s", "tls", "offline", "c2s" }

http_ports = { @PORT@ }
http_interfaces = { "127.0.0.1" }
https_ports = {}

c2s_require_encryption = false
authentication = "internal_hashed"

VirtualHost "localhost"
  password_hash = "SHA-256"

VirtualHost "old.localhost"
  password_hash = "SHA-1"
