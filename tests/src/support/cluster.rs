//! Three RabbitMQ nodes on one machine, joined: on loopback to be killed, or each in a network
//! namespace on one bridge to be cut off. Ended, with namespaces and bridge, when dropped.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use super::{
    folder::{Folder, run},
    process::{gone, signal},
};

/// The nodes are called 1, 2 and 3.
#[derive(Debug)]
pub(crate) struct Cluster {
    folder: Folder,
}

impl Cluster {
    /// On loopback.
    pub(crate) async fn start() -> Self {
        Self::with(&["start"]).await
    }

    /// In network namespaces; needs root.
    pub(crate) async fn in_namespaces() -> Self {
        Self::with(&["start", "netns"]).await
    }

    async fn with(arguments: &[&str]) -> Self {
        let folder = Folder::new("cluster");
        let cluster = Self { folder };
        cluster.run(arguments).await;
        cluster
    }

    /// `tests/services/cluster` on this cluster; its standard output.
    async fn run(&self, arguments: &[&str]) -> String {
        let services = Path::new(env!("CARGO_MANIFEST_DIR")).join("services");
        let mut command = Command::new(services.join("cluster"));
        command
            .arg(self.folder.path())
            .args(arguments)
            .stdin(Stdio::null());
        let output = run(command).await;
        assert!(
            output.status.success(),
            "cluster {arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// `amqp://…` that names all three.
    pub(crate) async fn url(&self) -> String {
        let mut hosts = Vec::new();
        for n in ["1", "2", "3"] {
            let address = self.run(&["address", n]).await;
            hosts.push(address.trim().to_owned());
        }
        format!("amqp://guest:guest@{}/%2f", hosts.join(","))
    }

    /// The node that leads a queue.
    pub(crate) async fn leader(&self, queue: &str) -> usize {
        let arguments = ["list_queues", "name", "leader", "--no-table-headers"];
        let list = self.ctl(1, &arguments).await;
        let leader = list.lines().find_map(|line| {
            let (name, node) = line.split_once(char::is_whitespace)?;
            let number = node.trim().strip_prefix("postrider")?.split('@').next()?;
            (name == queue).then(|| number.parse().ok()).flatten()
        });
        leader.unwrap_or_else(|| panic!("nobody leads {queue}:\n{list}"))
    }

    pub(crate) async fn ctl(&self, node: usize, arguments: &[&str]) -> String {
        let node = node.to_string();
        self.run(&[&["ctl", &node], arguments].concat()).await
    }

    /// As a power cut would.
    pub(crate) async fn kill9(&self, node: usize) {
        let name = format!("node{node}");
        let pid = self.folder.pid(&name).expect("the node runs");
        signal(pid, "KILL");
        gone(pid).await;
        self.folder.forget(&name);
    }

    /// Starts these nodes again, all at once, and waits until each answers.
    pub(crate) async fn start_again(&self, nodes: &[usize]) {
        for node in nodes {
            self.run(&["node", &node.to_string()]).await;
        }
        for node in nodes {
            self.run(&["answers", &node.to_string()]).await;
        }
    }

    /// Nobody reaches this node any more, and it reaches nobody.
    pub(crate) async fn alone(&self, node: usize) {
        self.run(&["net", "alone", &node.to_string()]).await;
    }

    /// 1 and 2 do not reach each other; both reach 3, and clients reach all.
    pub(crate) async fn ring(&self) {
        self.run(&["net", "ring"]).await;
    }

    pub(crate) async fn heal(&self) {
        self.run(&["net", "heal"]).await;
    }
}
