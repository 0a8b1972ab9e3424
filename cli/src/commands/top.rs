//! `dfs top`: servers, chunks, rebuild and events, as they change.

mod view;

use std::io::IsTerminal as _;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use dfs_proto::control::{EventsRequest, StatusReply};
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use crate::args::ClusterArgs;
use crate::args::servers::TopArgs;
use crate::cluster::{self, Target};
use crate::failure::fail;
use crate::{admin, servers};
use view::View;

/// As many as a tall terminal shows.
const EVENTS: u32 = 50;
/// How soon a key is answered.
const KEY_WAIT: Duration = Duration::from_millis(100);
/// One question; the next one comes soon enough.
const ANSWER_WAIT: Duration = Duration::from_secs(3);

/// What the master said, or why it did not.
#[derive(Debug)]
enum News {
    Now(Box<StatusReply>, Vec<dfs_proto::control::Event>),
    Away(String),
}

pub(crate) fn run(cluster: &ClusterArgs, args: &TopArgs) -> anyhow::Result<()> {
    let target = cluster::target(cluster)?;
    if !(std::io::stdout().is_terminal() && std::io::stdin().is_terminal()) {
        return fail(
            "dfs top draws on a terminal, and this is none",
            "for programs there is `dfs status -o json`, and `dfs events -f -o json`",
        );
    }
    // What is wrong from the start is an error, not a picture of it.
    let first = ask(&target)?;
    let (tell, told) = sync_channel(1);
    let target = Target { wait: target.wait.min(ANSWER_WAIT), ..target };
    let mut view = View::new(target.master.clone());
    view.on_news(first);
    let interval = args.interval;
    // Ends with the process: it may wait for an answer, and nobody should wait for it.
    let _asker = std::thread::Builder::new()
        .name("ask".to_owned())
        .spawn(move || ask_on(&target, interval, &tell))
        .context("start the thread that asks the master")?;
    let mut terminal = ratatui::try_init().context("take over the terminal")?;
    let shown = show(&mut terminal, &mut view, &told);
    ratatui::try_restore().context("give the terminal back")?;
    shown
}

fn ask(target: &Target) -> anyhow::Result<News> {
    let status = admin::status(target)?;
    let request = EventsRequest { from: 0, max: EVENTS, wait_ms: 0, last: Some(EVENTS) };
    Ok(News::Now(Box::new(status), servers::events(target, request)?.events))
}

fn ask_on(target: &Target, interval: Duration, tell: &SyncSender<News>) {
    loop {
        std::thread::sleep(interval);
        let news = ask(target).unwrap_or_else(|error| News::Away(format!("{error:#}")));
        if tell.send(news).is_err() {
            return;
        }
    }
}

fn show(
    terminal: &mut ratatui::DefaultTerminal,
    view: &mut View,
    told: &Receiver<News>,
) -> anyhow::Result<()> {
    loop {
        terminal.draw(|frame| view.draw(frame, Instant::now())).context("draw")?;
        if event::poll(KEY_WAIT).context("wait for a key")? {
            // Another size is drawn at once, whatever comes.
            if let Event::Key(key) = event::read().context("read a key")?
                && key.kind == KeyEventKind::Press
                && pressed(view, key)
            {
                return Ok(());
            }
        }
        match told.recv_timeout(Duration::ZERO) {
            Ok(news) => view.on_news(news),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => anyhow::bail!("nobody asks the master any more"),
        }
    }
}

/// Whether that ends it.
fn pressed(view: &mut View, key: KeyEvent) -> bool {
    if key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL) {
        return true;
    }
    if [KeyCode::Down, KeyCode::Char('j')].contains(&key.code) {
        view.scroll(1);
    } else if [KeyCode::Up, KeyCode::Char('k')].contains(&key.code) {
        view.scroll(-1);
    }
    [KeyCode::Char('q'), KeyCode::Esc].contains(&key.code)
}
