//! The words of the command line, and nothing of what they do.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Routes a booking platform's events to whoever subscribed: matched, filtered, written in the
/// subscriber's dialect, signed, delivered, retried, remembered.
#[derive(Debug, Parser)]
#[command(
    name = "postrider",
    version,
    propagate_version = true,
    arg_required_else_help = true
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What every command understands.
#[derive(Debug, Args)]
pub(crate) struct Global {
    /// Settings file [default: postrider.toml, if there is one]
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Overrides one setting, such as `--set api.listen=127.0.0.1:8081`; may be repeated
    #[arg(long = "set", global = true, value_name = "KEY=VALUE", value_parser = setting)]
    pub(crate) set: Vec<(String, String)>,
}

fn setting(text: &str) -> Result<(String, String), String> {
    pair(text).ok_or_else(|| "expected KEY=VALUE, such as api.listen=127.0.0.1:8081".into())
}

fn key_value(text: &str) -> Result<(String, String), String> {
    pair(text).ok_or_else(|| "expected KEY=VALUE".into())
}

fn pair(text: &str) -> Option<(String, String)> {
    let (key, value) = text.split_once('=')?;
    (!key.is_empty()).then(|| (key.to_owned(), value.to_owned()))
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Shows the whole thing working, with nothing to configure or install
    Demo(Demo),
    /// Runs the stages: all in one process, or those named
    Serve(Serve),
    /// Publishes events from a file or standard input (one, an array, or one per line)
    Publish(Publish),
    /// Subscriptions: who wants what, sent where
    #[command(subcommand)]
    Subscriptions(Subscriptions),
    /// The dialects: how webhooks are named, written and retried
    #[command(subcommand)]
    Dialects(Dialects),
    /// The types of events, and the dialects that have a word for them
    #[command(subcommand)]
    EventTypes(EventTypes),
    /// What was published, and why each subscription got it or did not
    #[command(subcommand)]
    Events(Events),
    /// What became of each event for each subscription, attempt by attempt
    #[command(subcommand)]
    Deliveries(Deliveries),
    /// Forwards every matching event, signed as it would be, to an address on this machine
    Listen(Box<Listen>),
    /// Shows what happens as it happens: events accepted, and what becomes of deliveries
    Tail(Tail),
    /// Deliveries that will not be tried again
    #[command(subcommand)]
    DeadLetters(DeadLetters),
    /// Replays and redrives: how far they are
    #[command(subcommand)]
    Jobs(Jobs),
    /// Resources that events are about
    #[command(subcommand)]
    Subjects(Subjects),
    /// Messages that could never be processed
    #[command(subcommand)]
    Quarantine(Quarantine),
    /// API tokens
    #[command(subcommand)]
    Tokens(Tokens),
    /// The broker's exchanges and queues
    #[command(subcommand)]
    Topology(Topology),
    /// The settings
    #[command(subcommand)]
    Config(Config),
    /// Measures publish -> endpoint on the configured broker, with its own load and sink
    Bench(Bench),
    /// Prints a completion script for a shell
    Completions {
        /// bash, zsh, fish, elvish or powershell
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Demo {
    /// Ends after the summary, also on a terminal
    #[arg(long)]
    pub(crate) once: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Serve {
    /// The stages to run in this process [default: all]
    #[arg(long, value_delimiter = ',', value_name = "ROLE,…")]
    pub(crate) role: Vec<Role>,
}

/// A stage of the pipeline, as `--role` names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, ValueEnum)]
pub(crate) enum Role {
    /// HTTP intake
    Producer,
    /// Matches events with subscriptions
    Router,
    /// Filters, signs, delivers, retries
    Deliverer,
    /// Records dead letters and quarantine
    Recorder,
    /// Management API
    Console,
}

impl Role {
    /// Every stage, in the order an event meets them.
    pub(crate) const ALL: [Self; 5] = [
        Self::Producer,
        Self::Router,
        Self::Deliverer,
        Self::Recorder,
        Self::Console,
    ];
}

/// How to reach a running Postrider's API.
#[derive(Debug, Clone, Args)]
pub(crate) struct Remote {
    /// The API's address [default: http:// and api.listen]
    #[arg(long, env = "POSTRIDER_API", value_name = "URL")]
    pub(crate) api: Option<String>,
    /// A token [default: auth.admin_token]
    #[arg(long, env = "POSTRIDER_TOKEN", hide_env_values = true)]
    pub(crate) token: Option<String>,
}

/// How to print what was found.
#[derive(Debug, Clone, Args)]
pub(crate) struct Listing {
    #[command(flatten)]
    pub(crate) remote: Remote,
    /// How to print
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub(crate) output: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people
    Table,
    /// For programs
    Json,
}

/// Which page of a list.
#[derive(Debug, Args)]
pub(crate) struct Paging {
    /// How many to show
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=500))]
    pub(crate) limit: u32,
    /// Where an earlier page ended
    #[arg(long)]
    pub(crate) cursor: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Publish {
    /// The file, or `-` for standard input
    #[arg(default_value = "-", value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// The file holds one event per line; seen by itself where there is more than one
    #[arg(long)]
    pub(crate) ndjson: bool,
    #[command(flatten)]
    pub(crate) listing: Listing,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Subscriptions {
    /// Lists them
    List {
        /// Only this tenant's
        #[arg(long)]
        tenant: Option<String>,
        #[command(flatten)]
        paging: Paging,
        #[command(flatten)]
        listing: Listing,
    },
    /// Shows one
    Show {
        /// sub_…
        id: String,
        #[command(flatten)]
        listing: Listing,
    },
    /// Creates one; prints its signing secret, once
    Create(Box<CreateSubscription>),
    /// Changes one by a JSON merge patch read from a file or standard input
    Update {
        /// sub_…
        id: String,
        /// The patch, or `-` for standard input
        #[arg(default_value = "-")]
        file: PathBuf,
        #[command(flatten)]
        listing: Listing,
    },
    /// Deletes one
    Delete {
        /// sub_…
        id: String,
        #[command(flatten)]
        remote: Remote,
    },
    /// Holds what matches it, until it is resumed
    Pause {
        /// sub_…
        id: String,
        #[command(flatten)]
        listing: Listing,
    },
    /// Delivers again, what was held first
    Resume {
        /// sub_…
        id: String,
        #[command(flatten)]
        listing: Listing,
    },
    /// Sends one an example of each event that it listens to
    Test {
        /// sub_…
        id: String,
        /// Only of these of its events
        #[arg(long, value_delimiter = ',')]
        events: Vec<String>,
        #[command(flatten)]
        listing: Listing,
    },
    /// Says whether one wants an event, clause by clause, and what it would be sent; sends nothing
    Explain {
        /// sub_…
        id: String,
        /// A JSON file with the event, or `-` for standard input
        #[arg(default_value = "-", value_name = "EVENT")]
        file: PathBuf,
        #[command(flatten)]
        listing: Listing,
    },
    /// Sends one again what happened since a time, also from before it was made
    Replay(Box<Replay>),
    /// Makes a new signing secret; the old one signs on beside it for 24 h
    RotateSecret {
        /// sub_…
        id: String,
        #[command(flatten)]
        listing: Listing,
    },
}

#[derive(Debug, Args)]
pub(crate) struct CreateSubscription {
    /// A JSON file with the whole subscription (`-` for standard input) instead of the flags
    #[arg(long, value_name = "FILE", conflicts_with_all = ["target_url", "events", "dialect", "parameters", "attributes", "view"])]
    pub(crate) file: Option<PathBuf>,
    /// Whose events; may be left out with a token bound to one tenant
    #[arg(long)]
    pub(crate) tenant: Option<String>,
    /// Where deliveries go
    #[arg(long = "url", value_name = "URL", required_unless_present = "file")]
    pub(crate) target_url: Option<String>,
    /// What to listen to, such as `appointment.*,payment.paid`, or the dialect's own words
    #[arg(long, value_delimiter = ',', required_unless_present_any = ["file", "parameters"])]
    pub(crate) events: Vec<String>,
    /// How deliveries are written, see `postrider dialects list` [default: standard]
    #[arg(long, value_name = "NAME")]
    pub(crate) dialect: Option<String>,
    /// A parameter of the dialect, such as `loading_mode=basic`; one that is given more than once
    /// is a list, and a value in `[…]` is read as JSON
    #[arg(long = "parameter", value_name = "KEY=VALUE", value_parser = key_value)]
    pub(crate) parameters: Vec<(String, String)>,
    /// An attribute that the dialect may write, such as `site_name=Salon 17`; may be repeated
    #[arg(long = "attribute", value_name = "KEY=VALUE", value_parser = key_value)]
    pub(crate) attributes: Vec<(String, String)>,
    /// How much of the record is sent: basic, full, extended
    #[arg(long)]
    pub(crate) view: Option<String>,
    /// A name for people
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Only these actions (created, updated)
    #[arg(long, value_delimiter = ',')]
    pub(crate) actions: Vec<String>,
    /// Only these statuses
    #[arg(long, value_delimiter = ',')]
    pub(crate) statuses: Vec<String>,
    /// Only when one of these fields changed
    #[arg(long, value_delimiter = ',')]
    pub(crate) changed_fields: Vec<String>,
    /// Only when this CEL expression holds, such as `event.data.price > 100`
    #[arg(long = "where", value_name = "EXPRESSION")]
    pub(crate) expression: Option<String>,
    #[command(flatten)]
    pub(crate) listing: Listing,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Dialects {
    /// Lists those that are built in, and those of `dialects.path`
    List {
        /// How to print
        #[arg(long, value_enum, default_value_t = Format::Table)]
        output: Format,
    },
    /// Shows one: its events with what each takes, and how it is sent
    Show {
        /// Its name
        name: String,
        /// How to print
        #[arg(long, value_enum, default_value_t = Format::Table)]
        output: Format,
    },
    /// Checks a dialect's file: runs its examples and shows where they differ
    Check {
        /// NAME.toml
        file: PathBuf,
    },
    /// Shows what would be sent for an event
    Render {
        /// The dialect; that of the subscription where one is given
        #[arg(long, required_unless_present = "subscription")]
        dialect: Option<String>,
        /// A JSON file with the subscription it is sent to, as one is created
        #[arg(long, value_name = "FILE")]
        subscription: Option<PathBuf>,
        /// A JSON file with the event, or `-` for standard input
        #[arg(default_value = "-", value_name = "EVENT")]
        event: PathBuf,
        /// How to print
        #[arg(long, value_enum, default_value_t = Format::Table)]
        output: Format,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum EventTypes {
    /// Lists them
    List {
        /// How to print
        #[arg(long, value_enum, default_value_t = Format::Table)]
        output: Format,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Events {
    /// Lists them, newest first
    List {
        #[command(flatten)]
        filter: EventFilter,
        #[command(flatten)]
        paging: Paging,
        #[command(flatten)]
        listing: Listing,
    },
    /// Shows one, with its payload where that is archived
    Show(OneEvent),
    /// Says for each subscription of its tenant what became of one, and why
    Explain(OneEvent),
}

#[derive(Debug, Args)]
pub(crate) struct OneEvent {
    /// The event's id
    pub(crate) id: String,
    /// Whose it is, where several tenants have the id
    #[arg(long)]
    pub(crate) tenant: Option<String>,
    #[command(flatten)]
    pub(crate) listing: Listing,
}

#[derive(Debug, Args)]
pub(crate) struct EventFilter {
    /// Only this tenant's
    #[arg(long)]
    pub(crate) tenant: Option<String>,
    /// An event type
    #[arg(long = "type", value_name = "TYPE")]
    pub(crate) kind: Option<String>,
    /// One of the resources that it names as its subject
    #[arg(long)]
    pub(crate) subject: Option<String>,
    /// Accepted at or after this time (RFC 3339)
    #[arg(long)]
    pub(crate) since: Option<String>,
    /// Accepted before this time (RFC 3339)
    #[arg(long)]
    pub(crate) until: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Deliveries {
    /// Lists them, newest first
    List {
        #[command(flatten)]
        filter: DeliveryFilter,
        #[command(flatten)]
        paging: Paging,
        #[command(flatten)]
        listing: Listing,
    },
    /// Counts them by day, week or month, newest first
    Periods {
        /// day, week or month
        #[arg(long, default_value = "day")]
        by: String,
        #[command(flatten)]
        filter: DeliveryFilter,
        #[command(flatten)]
        listing: Listing,
    },
    /// Shows one with every attempt
    Show {
        /// dlv_…
        id: String,
        #[command(flatten)]
        listing: Listing,
    },
    /// Sends one that has ended again, now
    Retry {
        /// dlv_…
        id: String,
        #[command(flatten)]
        remote: Remote,
    },
}

#[derive(Debug, Args)]
pub(crate) struct DeliveryFilter {
    /// Only this tenant's
    #[arg(long)]
    pub(crate) tenant: Option<String>,
    /// sub_…
    #[arg(long)]
    pub(crate) subscription: Option<String>,
    /// An event's id
    #[arg(long)]
    pub(crate) event: Option<String>,
    /// pending, delivered, retrying, held, filtered, superseded, dead, canceled
    #[arg(long)]
    pub(crate) state: Option<String>,
    /// Of dead ones: exhausted, gone, refused, expired, render_error, target_not_allowed,
    /// subscription_deleted
    #[arg(long)]
    pub(crate) reason: Option<String>,
    /// An event type
    #[arg(long = "type", value_name = "TYPE")]
    pub(crate) kind: Option<String>,
    /// Of events accepted at or after this time (RFC 3339)
    #[arg(long)]
    pub(crate) since: Option<String>,
    /// Of events accepted before this time (RFC 3339)
    #[arg(long)]
    pub(crate) until: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Listen {
    /// Where each request goes, such as `http://localhost:3000/hook`
    #[arg(long, value_name = "URL")]
    pub(crate) forward_to: String,
    /// Whose events; may be left out with a token bound to one tenant
    #[arg(long)]
    pub(crate) tenant: Option<String>,
    /// What to listen to, such as `appointment.*,payment.paid`, or the dialect's own words; may be
    /// repeated [default: everything]
    #[arg(long, value_delimiter = ',')]
    pub(crate) events: Vec<String>,
    /// How requests are written, see `postrider dialects list` [default: standard]
    #[arg(long, value_name = "NAME")]
    pub(crate) dialect: Option<String>,
    /// A parameter of the dialect, such as `loading_mode=basic`; may be repeated
    #[arg(long = "parameter", value_name = "KEY=VALUE", value_parser = key_value)]
    pub(crate) parameters: Vec<(String, String)>,
    /// An attribute that the dialect may write; may be repeated
    #[arg(long = "attribute", value_name = "KEY=VALUE", value_parser = key_value)]
    pub(crate) attributes: Vec<(String, String)>,
    /// How much of the record is sent: basic, full, extended
    #[arg(long)]
    pub(crate) view: Option<String>,
    /// Only these actions (created, updated)
    #[arg(long, value_delimiter = ',')]
    pub(crate) actions: Vec<String>,
    /// Only these statuses
    #[arg(long, value_delimiter = ',')]
    pub(crate) statuses: Vec<String>,
    /// Only when one of these fields changed
    #[arg(long, value_delimiter = ',')]
    pub(crate) changed_fields: Vec<String>,
    /// Only when this CEL expression holds, such as `event.data.price > 100`
    #[arg(long = "where", value_name = "EXPRESSION")]
    pub(crate) expression: Option<String>,
    /// How long what matches is kept while the connection is away, `5s` to `1h` [default: 10m]
    #[arg(long, value_name = "DURATION")]
    pub(crate) keep_for: Option<String>,
    #[command(flatten)]
    pub(crate) listing: Listing,
}

#[derive(Debug, Args)]
pub(crate) struct Tail {
    /// Only this tenant's
    #[arg(long)]
    pub(crate) tenant: Option<String>,
    /// Only these types, such as `appointment.*,payment.paid`
    #[arg(long = "type", value_name = "TYPE,…", value_delimiter = ',')]
    pub(crate) types: Vec<String>,
    /// Only what is for this subscription: sub_…
    #[arg(long)]
    pub(crate) subscription: Option<String>,
    #[command(flatten)]
    pub(crate) listing: Listing,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DeadLetters {
    /// Lists them, newest first
    List {
        #[command(flatten)]
        filter: DeadFilter,
        #[command(flatten)]
        paging: Paging,
        #[command(flatten)]
        listing: Listing,
    },
    /// Shows one with its attempts and its event
    Show {
        /// dl_…
        id: String,
        #[command(flatten)]
        listing: Listing,
    },
    /// Sends again: one, or all that a filter finds
    Redrive {
        /// dl_…
        #[arg(required_unless_present = "all")]
        id: Option<String>,
        /// All that the filter finds
        #[arg(long, conflicts_with = "id")]
        all: bool,
        #[command(flatten)]
        filter: DeadFilter,
        #[command(flatten)]
        remote: Remote,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Replay {
    /// sub_…
    pub(crate) id: String,
    /// Accepted (with `--only dead`: died) at or after this time (RFC 3339)
    #[arg(long)]
    pub(crate) since: String,
    /// Accepted (with `--only dead`: died) before this time (RFC 3339) [default: now]
    #[arg(long)]
    pub(crate) until: Option<String>,
    /// Only these types, such as `appointment.*,payment.paid`
    #[arg(long = "type", value_name = "TYPE", value_delimiter = ',')]
    pub(crate) types: Vec<String>,
    /// all: every event in the archive that matches; dead: its dead letters
    #[arg(long, default_value = "all", value_parser = ["all", "dead"])]
    pub(crate) only: String,
    /// Deliveries per second, 1 to 1000 [default: 50]
    #[arg(long)]
    pub(crate) rate: Option<u32>,
    /// Counts, and sends nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Stays until the job has ended
    #[arg(long, conflicts_with = "dry_run")]
    pub(crate) wait: bool,
    #[command(flatten)]
    pub(crate) listing: Listing,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Jobs {
    /// Lists them, newest first
    List {
        /// Only this tenant's
        #[arg(long)]
        tenant: Option<String>,
        /// running, done, canceled, failed
        #[arg(long)]
        state: Option<String>,
        /// replay, redrive, resume
        #[arg(long)]
        kind: Option<String>,
        /// sub_…
        #[arg(long)]
        subscription: Option<String>,
        #[command(flatten)]
        paging: Paging,
        #[command(flatten)]
        listing: Listing,
    },
    /// Shows one
    Show {
        /// job_…
        id: String,
        /// Stays until it has ended
        #[arg(long)]
        wait: bool,
        #[command(flatten)]
        listing: Listing,
    },
    /// Ends one; what it has sent stays sent
    Cancel {
        /// job_…
        id: String,
        #[command(flatten)]
        listing: Listing,
    },
}

#[derive(Debug, Args)]
pub(crate) struct DeadFilter {
    /// exhausted, gone, refused, expired, render_error, target_not_allowed, subscription_deleted
    #[arg(long)]
    pub(crate) reason: Option<String>,
    /// sub_…
    #[arg(long)]
    pub(crate) subscription: Option<String>,
    /// An event type
    #[arg(long = "type", value_name = "TYPE")]
    pub(crate) kind: Option<String>,
    /// Died at or after this time (RFC 3339)
    #[arg(long)]
    pub(crate) since: Option<String>,
    /// Died before this time (RFC 3339)
    #[arg(long)]
    pub(crate) until: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Quarantine {
    /// Lists them, newest first
    List {
        #[command(flatten)]
        paging: Paging,
        #[command(flatten)]
        listing: Listing,
    },
    /// Shows one with its bytes
    Show {
        /// q_…
        id: String,
        #[command(flatten)]
        listing: Listing,
    },
    /// Sends one through intake again
    Release {
        /// q_…
        id: String,
        #[command(flatten)]
        remote: Remote,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Tokens {
    /// Lists them
    List {
        #[command(flatten)]
        paging: Paging,
        #[command(flatten)]
        listing: Listing,
    },
    /// Makes one; prints it, once
    Create {
        /// A name for people
        #[arg(long)]
        name: String,
        /// publish, manage, read, admin
        #[arg(long, value_delimiter = ',', required = true)]
        scopes: Vec<String>,
        /// The only tenant it may see
        #[arg(long)]
        tenant: Option<String>,
        /// When it ends by itself (RFC 3339)
        #[arg(long)]
        expires_at: Option<String>,
        #[command(flatten)]
        listing: Listing,
    },
    /// Revokes one, at once
    #[command(visible_alias = "revoke")]
    Delete {
        /// The part of the token between `pr_` and its secret, as the list shows it
        id: String,
        #[command(flatten)]
        remote: Remote,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Subjects {
    /// Expunges the payloads of one resource from archive, log, dead letters and what is held
    Forget {
        /// The part of an event's type before the dot, such as `client`
        entity: String,
        /// Its id, as `subject` or `data.id` of its events
        id: String,
        /// Whose it is; needed where the token is bound to no tenant
        #[arg(long)]
        tenant: Option<String>,
        #[command(flatten)]
        listing: Listing,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Topology {
    /// Prints every exchange and queue
    Show {
        /// text, json, or a RabbitMQ definitions file
        #[arg(long, visible_alias = "output", value_enum, default_value_t = TopologyFormat::Text)]
        format: TopologyFormat,
    },
    /// Declares what is missing on the configured RabbitMQ
    Declare {
        /// Also deletes and declares again queues that answer no more (an empty queue lost to a
        /// crash right after its first declaration)
        #[arg(long)]
        repair: bool,
    },
    /// Compares the configured RabbitMQ with what should be there
    Check,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum TopologyFormat {
    /// For people
    #[value(alias = "table")]
    Text,
    /// For programs
    Json,
    /// For `rabbitmqctl import_definitions`
    Definitions,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Config {
    /// Prints every setting, its value (secrets as `***`) and where it came from
    Show {
        /// How to print
        #[arg(long, value_enum, default_value_t = Format::Table)]
        output: Format,
    },
    /// Checks the settings and prints what is wrong with them
    Check,
}

#[derive(Debug, Args)]
pub(crate) struct Bench {
    /// What to measure
    #[arg(long, value_enum, default_value_t = Measure::Pipeline)]
    pub(crate) measure: Measure,
    /// Matching subscriptions per event
    #[arg(long, default_value_t = 1)]
    pub(crate) fanout: usize,
    /// Events per second; 0 is as many as it takes
    #[arg(long, default_value_t = 0.0)]
    pub(crate) rate: f64,
    /// How long to measure
    #[arg(long, default_value_t = 8)]
    pub(crate) secs: u64,
    /// Bytes per event
    #[arg(long, default_value_t = 1024)]
    pub(crate) size: usize,
    /// Publishes waiting for their confirm
    #[arg(long, default_value_t = 200)]
    pub(crate) window: usize,
    /// The matching subscriptions' max_in_flight
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub(crate) in_flight: u32,
    /// Other subscriptions, that match nothing
    #[arg(long, default_value_t = 0)]
    pub(crate) subscriptions: usize,
    /// Endpoints, each with a subscription of its own (neighbours)
    #[arg(long, default_value_t = 1000)]
    pub(crate) endpoints: usize,
    /// Deliveries that wait for the endpoint that is away (backlog)
    #[arg(long, default_value_t = 100_000)]
    pub(crate) backlog: usize,
    /// Have a recorder at work beside it, on the bench's own store (PostgreSQL where `store.url`
    /// names one: its tables are filled)
    #[arg(long)]
    pub(crate) recorder: bool,
    /// How to print
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub(crate) output: Format,
    /// Internal: a process of a running bench
    #[arg(long, hide = true)]
    pub(crate) part: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Measure {
    /// Publish over the broker's own protocol -> endpoint
    Pipeline,
    /// Publish over HTTP -> accepted
    Intake,
    /// What endpoints that hang or answer late cost the others; beside a deliverer with a fixed
    /// window
    Neighbours,
    /// What a backlog for an endpoint that is away costs, and how it is delivered afterwards
    Backlog,
}
