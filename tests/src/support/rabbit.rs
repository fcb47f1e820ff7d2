//! Real RabbitMQ. Most tests need only a virtual host of their own on the broker that
//! `tests/with-services` started; a test that kills or configures one starts a private one.

use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::OnceCell;

use super::folder::{Folder, run};
use super::http;
use super::process::{free_port, gone, signal};

/// A private broker: Debian's RabbitMQ with no plugin, ended when dropped.
#[derive(Debug)]
pub(crate) struct Rabbit {
    folder: Folder,
    tls_port: Option<u16>,
}

/// What a private broker may differ in.
#[derive(Debug, Default)]
pub(crate) struct Options {
    /// PEM files for a TLS listener beside the plain one.
    pub(crate) tls: Option<Tls>,
    /// More lines for `rabbitmq.conf`.
    pub(crate) extra_conf: String,
    /// The text of an `advanced.config`.
    pub(crate) advanced: Option<String>,
    /// Plugins by name; none unless the test is about one.
    pub(crate) plugins: Vec<&'static str>,
}

/// PEM files of a TLS listener.
#[derive(Debug)]
pub(crate) struct Tls {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
    pub(crate) ca: PathBuf,
}

impl Rabbit {
    /// A broker with Debian's defaults.
    pub(crate) async fn start() -> Self {
        Self::start_with(Options::default()).await
    }

    /// A broker with what the options say, answering AMQP.
    pub(crate) async fn start_with(options: Options) -> Self {
        let folder = Folder::new("rabbit");
        let mut conf = options.extra_conf;
        let tls_port = options.tls.map(|tls| {
            let port = free_port();
            conf.push_str(&format!(
                "\nlisteners.ssl.1 = 127.0.0.1:{port}\nssl_options.cacertfile = {}\n\
                 ssl_options.certfile = {}\nssl_options.keyfile = {}\nssl_options.verify = \
                 verify_none\nssl_options.fail_if_no_peer_cert = false\n",
                tls.ca.display(),
                tls.certificate.display(),
                tls.key.display()
            ));
            port
        });
        write(&folder, "extra.conf", &conf);
        write(
            &folder,
            "plugins.wanted",
            &format!("[{}].\n", options.plugins.join(",")),
        );
        if let Some(advanced) = options.advanced {
            write(&folder, "advanced.config", &advanced);
        }
        folder.start_service("rabbitmq").await;
        Self { folder, tls_port }
    }

    /// `amqp://…` of its default virtual host.
    pub(crate) fn url(&self) -> String {
        format!("amqp://guest:guest@127.0.0.1:{}/%2f", self.port())
    }

    /// `amqps://…`, when it was started with TLS. The host is a name, as certificates want.
    pub(crate) fn tls_url(&self) -> String {
        let port = self
            .tls_port
            .expect("this broker was started with Options.tls");
        format!("amqps://guest:guest@localhost:{port}/%2f")
    }

    pub(crate) fn port(&self) -> u16 {
        self.folder.port("amqp")
    }

    /// The pid of the broker itself, while it runs.
    pub(crate) fn pid(&self) -> u32 {
        self.folder.pid("node").expect("the broker runs")
    }

    /// Ends the broker as a power cut would, and returns when it is gone.
    ///
    /// A quorum queue that was declared less than about 3 s before does not survive this; see
    /// [`Self::queue_names_are_on_disk`].
    pub(crate) async fn kill9(&self) {
        let pid = self.pid();
        signal(pid, "KILL");
        gone(pid).await;
        self.folder.forget("node");
    }

    /// Ends the broker in good order.
    pub(crate) async fn stop(&self) {
        let pid = self.pid();
        signal(pid, "TERM");
        gone(pid).await;
        self.folder.forget("node");
    }

    /// Waits until the names of our quorum queues are on disk. Killed before, the server comes
    /// back with the queues and without what they were, and they answer nothing; see
    /// [`Self::forget_queue_names`].
    pub(crate) async fn queue_names_are_on_disk(&self) {
        let queues = broker::topology::queues();
        let deadline = Instant::now() + Duration::from_secs(60);
        let on_disk = || {
            let table = std::fs::read(self.queue_names()).unwrap_or_default();
            let has = |name: &[u8]| table.windows(name.len()).any(|at| at == name);
            queues.iter().all(|queue| has(queue.name.as_bytes()))
        };
        while !on_disk() {
            assert!(
                Instant::now() < deadline,
                "the server never wrote the names of its queues"
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// While it is down: brings about what a kill within seconds of the queues' first declaration
    /// leaves behind, by taking away the file that their names had not come to.
    pub(crate) fn forget_queue_names(&self) {
        assert!(self.folder.pid("node").is_none(), "the broker still runs");
        std::fs::remove_file(self.queue_names()).expect("a server with quorum queues has it");
    }

    /// The one file in which the server notes which log belongs to which quorum queue.
    fn queue_names(&self) -> PathBuf {
        let node = format!("postrider{}@localhost", self.port());
        let quorum = self.folder.path().join("mnesia").join(&node).join("quorum");
        quorum.join(node).join("names.dets")
    }

    /// Starts it again after [`Self::kill9`] or [`Self::stop`], with its data and on its port.
    pub(crate) async fn start_again(&self) {
        assert!(self.folder.pid("node").is_none(), "the broker still runs");
        self.folder.start_service("rabbitmq").await;
    }

    /// `rabbitmqctl` against this broker; its standard output. Quiet, so rows are only rows.
    pub(crate) async fn ctl(&self, arguments: &[&str]) -> String {
        let env = self.folder.path().join("env");
        let mut command = Command::new("bash");
        command
            .args([
                "-c",
                r#". "$1"; shift; exec /usr/lib/rabbitmq/bin/rabbitmqctl --quiet "$@""#,
            ])
            .arg("rabbitmqctl")
            .arg(env)
            .args(arguments)
            .stdin(std::process::Stdio::null());
        let output = run(command).await;
        assert!(
            output.status.success(),
            "rabbitmqctl {arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// The URL of a new virtual host on this broker.
    pub(crate) async fn fresh_vhost_url(&self) -> String {
        let name = vhost_name();
        self.ctl(&["add_vhost", &name]).await;
        self.ctl(&["set_permissions", "-p", &name, "guest", ".*", ".*", ".*"])
            .await;
        format!("amqp://guest:guest@127.0.0.1:{}/{name}", self.port())
    }
}

fn write(folder: &Folder, name: &str, text: &str) {
    std::fs::write(folder.path().join(name), text).expect("a private folder is writable");
}

/// Names the process, because `with-services` removes the hosts of processes that have ended.
fn vhost_name() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!(
        "t-{}-{}",
        std::process::id(),
        COUNT.fetch_add(1, Ordering::Relaxed)
    )
}

/// The URL of a virtual host that nobody has used: on the shared broker that `with-services`
/// started, or, for who runs a test by hand, on one that this process starts for itself.
pub(crate) async fn fresh_vhost_url() -> String {
    static OWN: OnceCell<Rabbit> = OnceCell::const_new();
    let (Some(amqp), Some(admin)) = (shared("AMQP_PORT"), shared("AMQP_ADMIN_PORT")) else {
        return OWN.get_or_init(Rabbit::start).await.fresh_vhost_url().await;
    };
    let name = vhost_name();
    // "guest:guest"; creating a host gives its creator every permission on it.
    let authorization = "authorization: Basic Z3Vlc3Q6Z3Vlc3Q=";
    let answer = http::ask(
        admin,
        "PUT",
        &format!("/api/vhosts/{name}"),
        &[authorization],
    )
    .await
    .expect("the shared broker's admin port answers");
    assert_eq!(answer.status, 201, "creating {name}: {}", answer.body);
    format!("amqp://guest:guest@127.0.0.1:{amqp}/{name}")
}

fn shared(name: &str) -> Option<u16> {
    let port = std::env::var(format!("POSTRIDER_TEST_{name}")).ok()?;
    Some(port.parse().expect("with-services exports port numbers"))
}

#[tokio::test]
async fn a_private_broker_survives_kill_9_with_its_data() {
    let rabbit = Rabbit::start().await;
    rabbit.ctl(&["add_vhost", "kept"]).await;
    // The answer proves that the host is on disk; a killed broker must bring it back.
    rabbit.kill9().await;
    rabbit.start_again().await;
    let hosts = rabbit.ctl(&["list_vhosts"]).await;
    assert!(hosts.lines().any(|line| line == "kept"), "{hosts}");
}

#[tokio::test]
async fn fresh_virtual_hosts_are_different_and_accept_a_client() {
    let (first, second) = (fresh_vhost_url().await, fresh_vhost_url().await);
    assert_ne!(first, second);
    for url in [first, second] {
        let connection = lapin::Connection::connect(&url, lapin::ConnectionProperties::default());
        connection
            .await
            .expect("a fresh virtual host accepts its user");
    }
}
