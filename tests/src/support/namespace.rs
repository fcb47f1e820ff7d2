//! A network of the test's own: a namespace with nothing in it but `lo`, on which any address can
//! be ours and from which nothing can leave, whatever the product does.
//!
//! The test starts its own binary again inside, for itself alone, and is what that run says.

use std::process::{Command, Stdio};

const INSIDE: &str = "POSTRIDER_TEST_INSIDE";

/// What the namespace is like.
#[derive(Debug, Default)]
pub(crate) struct Net<'a> {
    /// Addresses of `lo`, besides loopback.
    pub(crate) addresses: &'a [&'a str],
    /// Lines of `/etc/hosts`, besides `localhost`.
    pub(crate) hosts: &'a str,
    /// `/etc/resolv.conf`.
    pub(crate) resolver: &'a str,
    /// Variables of the environment.
    pub(crate) environment: &'a [(&'a str, &'a str)],
}

/// Runs `body` inside. `name` is the test's own, with its path.
pub(crate) fn run<F: Future<Output = ()>>(name: &str, net: &Net<'_>, body: impl FnOnce() -> F) {
    if std::env::var_os(INSIDE).is_none() {
        return again(name, net);
    }
    set_up(net);
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(body());
}

fn again(name: &str, net: &Net<'_>) {
    let test = std::env::current_exe().expect("a running program has a path");
    let output = Command::new("unshare")
        .args(["--map-root-user", "--net", "--mount", "--kill-child", "--"])
        .arg(test)
        .args([name, "--exact", "--nocapture", "--test-threads=1"])
        .envs(net.environment.iter().copied())
        .env(INSIDE, "1")
        .stdin(Stdio::null())
        .output()
        .expect("unshare is installed (util-linux)");
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(
        output.status.success() && out.contains("1 passed"),
        "{name} did not pass in a network of its own. Where unshare itself failed, namespaces must \
         be allowed: run as root, or sysctl kernel.unprivileged_userns_clone=1 and \
         kernel.apparmor_restrict_unprivileged_userns=0.\n{out}\n{err}"
    );
    println!("{out}\n{err}");
}

fn set_up(net: &Net<'_>) {
    let mut script = String::from(
        "set -e\n\
         mount -t tmpfs none /mnt\n\
         printf 'hosts: files dns\\n' >/mnt/nsswitch.conf\n\
         printf '127.0.0.1 localhost\\n::1 localhost\\n%s\\n' \"$HOSTS\" >/mnt/hosts\n\
         printf '%s\\n' \"$RESOLVER\" >/mnt/resolv.conf\n\
         for f in nsswitch.conf hosts resolv.conf; do\n\
           if [ -e /etc/$f ]; then mount --bind /mnt/$f /etc/$f; fi\n\
         done\n\
         ip link set lo up\n",
    );
    for address in net.addresses {
        let (length, more) = match address.contains(':') {
            true => (128, " nodad"),
            false => (32, ""),
        };
        script += &format!("ip addr add {address}/{length} dev lo{more}\n");
    }
    let done = Command::new("sh")
        .args(["-c", &script])
        .env("HOSTS", net.hosts)
        .env("RESOLVER", net.resolver)
        .output()
        .expect("sh is installed");
    assert!(
        done.status.success(),
        "the network could not be set up (iproute2 and mount are needed): {}",
        String::from_utf8_lossy(&done.stderr)
    );
}
