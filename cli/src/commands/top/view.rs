//! What `dfs top` draws: readable at 80 columns and 24 lines.

use std::collections::VecDeque;
use std::time::Instant;

use dfs_proto::control::{Event, ServerStatus, StatusReply};
use ratatui::Frame;
use ratatui::layout::{Alignment, Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Cell, LineGauge, Paragraph, Row, Sparkline, Table};

use super::News;
use crate::commands::status::{age, copying, time};
use crate::output::{bytes, printable, utc, utc_now};

/// Seconds of throughput that are drawn, about.
const HISTORY_MAX: usize = 240;
const EVENT_LINES_MIN: u16 = 4;

/// The last that was told, and what came of it before.
#[derive(Debug)]
pub(super) struct View {
    master: String,
    status: StatusReply,
    events: Vec<Event>,
    /// Since when and why nothing is told.
    away: Option<(Instant, String)>,
    /// Bytes that clients read and write in a second, newest last.
    traffic: VecDeque<u64>,
    /// What was to be copied when it was most, since nothing was.
    most_to_copy: u64,
    first_server: usize,
    coloured: bool,
}

impl View {
    pub(super) fn new(master: String) -> Self {
        Self {
            master,
            status: StatusReply::default(),
            events: Vec::new(),
            away: None,
            traffic: VecDeque::new(),
            most_to_copy: 0,
            first_server: 0,
            coloured: std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()),
        }
    }

    pub(super) fn on_news(&mut self, news: News) {
        match news {
            News::Away(why) => {
                let since = self.away.as_ref().map_or_else(Instant::now, |(since, _)| *since);
                self.away = Some((since, why));
            }
            News::Now(status, events) => {
                self.away = None;
                let (read, written) = traffic(&status);
                self.traffic.push_back(read + written);
                if HISTORY_MAX < self.traffic.len() {
                    self.traffic.pop_front();
                }
                self.most_to_copy = match status.copy_backlog_bytes {
                    0 => 0,
                    left => self.most_to_copy.max(left),
                };
                (self.status, self.events) = (*status, events);
            }
        }
    }

    pub(super) fn scroll(&mut self, by: isize) {
        let last = self.status.servers.len().saturating_sub(1);
        self.first_server = self.first_server.saturating_add_signed(by).min(last);
    }

    pub(super) fn draw(&self, frame: &mut Frame<'_>, now: Instant) {
        let area = frame.area();
        let servers = u16::try_from(self.status.servers.len()).unwrap_or(u16::MAX);
        let fixed = 1 + 1 + 1 + 2 + 1 + EVENT_LINES_MIN;
        let table = servers.saturating_add(2).min(area.height.saturating_sub(fixed)).max(3);
        let [head, chunks, copy, clients, servers, events, keys] = Layout::vertical([
            Constraint::Length(1),
            Constraint::Length(1),
            Constraint::Length(1),
            Constraint::Length(2),
            Constraint::Length(table),
            Constraint::Min(1),
            Constraint::Length(1),
        ])
        .areas(area);
        self.draw_head(frame, head, now);
        frame.render_widget(Paragraph::new(self.chunks()), chunks);
        self.draw_copying(frame, copy);
        self.draw_clients(frame, clients);
        self.draw_servers(frame, servers);
        self.draw_events(frame, events);
        let hint = match &self.away {
            Some(_) => " q quit   what is shown is the last that was heard",
            None => " q quit   ↑ ↓ servers   a server or chunk in trouble: docs/operations.md",
        };
        frame.render_widget(Paragraph::new(hint).style(self.dim()), keys);
    }

    fn colour(&self, colour: Color) -> Style {
        if self.coloured { Style::new().fg(colour) } else { Style::new() }
    }

    fn dim(&self) -> Style {
        Style::new().add_modifier(Modifier::DIM)
    }

    fn draw_head(&self, frame: &mut Frame<'_>, area: Rect, now: Instant) {
        let StatusReply { phase, epoch, replication, .. } = &self.status;
        let left = match &self.away {
            None => Span::raw(format!(
                " dfs top   {}   {phase}, epoch {epoch}, {replication} replicas",
                printable(&self.master)
            )),
            Some((since, why)) => {
                let millis = now.saturating_duration_since(*since).as_millis();
                let waited = time(u64::try_from(millis).unwrap_or(u64::MAX));
                Span::styled(
                    format!(" no answer for {waited}: {}", printable(why)),
                    self.colour(Color::Red).add_modifier(Modifier::BOLD),
                )
            }
        };
        let clock = utc_now();
        let [text, right] =
            Layout::horizontal([Constraint::Min(0), Constraint::Length(width(&clock) + 2)])
                .areas(area);
        frame.render_widget(Paragraph::new(Line::from(left)), text);
        frame.render_widget(Paragraph::new(clock).alignment(Alignment::Right), right);
    }

    fn chunks(&self) -> Line<'static> {
        let totals = self.status.chunks.unwrap_or_default();
        let mut spans = vec![Span::raw(format!(" chunks  {}: ", totals.total))];
        let kinds = [
            (totals.safe, "safe", Color::Green),
            (totals.degraded, "degraded", Color::Yellow),
            (totals.endangered, "endangered", Color::LightRed),
            (totals.unavailable, "unavailable", Color::Red),
            (totals.lost, "lost", Color::Red),
        ];
        for (at, (count, kind, colour)) in kinds.into_iter().enumerate() {
            let style = if count == 0 {
                self.dim()
            } else {
                let bold = if kind == "safe" { Modifier::empty() } else { Modifier::BOLD };
                self.colour(colour).add_modifier(bold)
            };
            let comma = if at == 0 { "" } else { ", " };
            spans.push(Span::raw(comma));
            spans.push(Span::styled(format!("{count} {kind}"), style));
        }
        Line::from(spans)
    }

    fn draw_copying(&self, frame: &mut Frame<'_>, area: Rect) {
        let StatusReply { oldest_exposure_ms, copy_backlog_bytes, copy_rate, copy_eta_ms, .. } =
            &self.status;
        let Some(oldest) = oldest_exposure_ms else {
            let text = Paragraph::new(" rebuild nothing to do").style(self.dim());
            frame.render_widget(text, area);
            return;
        };
        let left = copying(*copy_backlog_bytes, *copy_rate, *copy_eta_ms);
        let text = format!(" rebuild {left}; exposed for {}", time(*oldest));
        let [label, bar] =
            Layout::horizontal([Constraint::Length(width(&text) + 1), Constraint::Min(0)])
                .areas(area);
        frame.render_widget(Paragraph::new(text), label);
        if 0 < self.most_to_copy && 8 <= bar.width {
            let done = self.most_to_copy.saturating_sub(*copy_backlog_bytes);
            let ratio = (done as f64 / self.most_to_copy as f64).clamp(0.0, 1.0);
            let gauge = LineGauge::default()
                .ratio(ratio)
                .label(format!("{:.0} %", ratio * 100.0))
                .filled_style(self.colour(Color::Green));
            frame.render_widget(gauge, bar);
        }
    }

    fn draw_clients(&self, frame: &mut Frame<'_>, area: Rect) {
        let (read, written) = traffic(&self.status);
        let text = vec![
            Line::from(format!(" clients {:<8} read  {}/s", self.status.clients, bytes(read))),
            Line::from(format!(" inodes  {:<8} write {}/s", self.status.inodes, bytes(written))),
        ];
        let wide = text.iter().map(Line::width).max().unwrap_or(0);
        let wide = u16::try_from(wide).unwrap_or(u16::MAX).saturating_add(2);
        let [label, line] =
            Layout::horizontal([Constraint::Length(wide), Constraint::Min(0)]).areas(area);
        frame.render_widget(Paragraph::new(text), label);
        let shown = self.traffic.len().saturating_sub(usize::from(line.width));
        let data: Vec<u64> = self.traffic.iter().skip(shown).copied().collect();
        frame.render_widget(Sparkline::default().data(data).style(self.colour(Color::Cyan)), line);
    }

    fn draw_servers(&self, frame: &mut Frame<'_>, area: Rect) {
        let servers = &self.status.servers;
        let lines = usize::from(area.height.saturating_sub(2));
        let first = self.first_server.min(servers.len().saturating_sub(lines));
        let shown = servers.len().saturating_sub(first).min(lines);
        let title = if shown < servers.len() {
            format!(" servers {} to {} of {} ", first + 1, first + shown, servers.len())
        } else {
            " servers ".to_owned()
        };
        let head = ["ID", "STATE", "CHUNKS", "USED", "FREE", "READ/s", "WRITE/s", "HEARD"];
        let widths = [
            Constraint::Length(8),
            Constraint::Min(10),
            Constraint::Length(7),
            Constraint::Length(8),
            Constraint::Length(8),
            Constraint::Length(9),
            Constraint::Length(9),
            Constraint::Length(10),
        ];
        let rows = servers.iter().skip(first).take(shown).map(|server| self.row(server));
        let table = Table::new(rows, widths)
            .column_spacing(1)
            .header(Row::new(head.iter().enumerate().map(|(at, name)| {
                let line = Line::from(*name);
                Cell::from(if at < 2 { line } else { line.right_aligned() })
            })))
            .block(Block::new().borders(Borders::TOP).title(title));
        frame.render_widget(table, area);
    }

    fn row(&self, server: &ServerStatus) -> Row<'static> {
        let colour = match server.state.as_str() {
            "alive" if server.overlays.is_empty() => Color::Green,
            "alive" | "suspect" => Color::Yellow,
            _ => Color::Red,
        };
        let overlays: Vec<&str> = server.overlays.iter().map(|o| o.kind.as_str()).collect();
        let state = match overlays.as_slice() {
            [] => server.state.clone(),
            kinds => format!("{} ({})", server.state, kinds.join(", ")),
        };
        let number = |text: String| Cell::from(Line::from(text).right_aligned());
        Row::new([
            Cell::from(printable(&server.id)),
            Cell::from(Span::styled(printable(&state), self.colour(colour))),
            number(server.chunks.to_string()),
            number(bytes(server.used_bytes)),
            number(bytes(server.free_bytes)),
            number(bytes(server.client_read_rate)),
            number(bytes(server.client_written_rate)),
            number(age(server.last_heartbeat_ms_ago).replace(" ago", "")),
        ])
    }

    /// The newest at the bottom, as many as there is room for.
    fn draw_events(&self, frame: &mut Frame<'_>, area: Rect) {
        let room = usize::from(area.height.saturating_sub(1));
        let skipped = self.events.len().saturating_sub(room);
        let lines: Vec<Line<'_>> =
            self.events.iter().skip(skipped).map(|event| self.event(event, area.width)).collect();
        let block = Block::new().borders(Borders::TOP).title(" events ");
        frame.render_widget(Paragraph::new(lines).block(block), area);
    }

    fn event(&self, event: &Event, columns: u16) -> Line<'static> {
        let at = utc(event.at_ns.div_euclid(1_000_000_000));
        let at = at.split_once(' ').map_or(at.as_str(), |(_, time)| time);
        let server = if event.server.is_empty() { "-" } else { &event.server };
        let mut cause = printable(&event.cause);
        if let Some(lasted) = event.lasted_ms {
            cause.push_str(&format!(", {}", time(lasted)));
        }
        let head = format!(" {at} {:<6} ", printable(server));
        let kind = format!("{:<12} ", printable(&event.kind));
        let room = usize::from(columns).saturating_sub(head.len() + kind.len());
        if room < cause.chars().count() {
            cause = cause.chars().take(room.saturating_sub(1)).chain(['…']).collect();
        }
        let colour = match event.kind.as_str() {
            "dead" | "lost" | "damaged" | "diverged" => self.colour(Color::Red),
            "suspect" | "suspended" => self.colour(Color::Yellow),
            _ => Style::new(),
        };
        Line::from(vec![Span::styled(head, self.dim()), Span::styled(kind, colour), cause.into()])
    }
}

/// Bytes that clients read and write in a second.
fn traffic(status: &StatusReply) -> (u64, u64) {
    status.servers.iter().fold((0, 0), |(read, written), server| {
        (read + server.client_read_rate, written + server.client_written_rate)
    })
}

fn width(text: &str) -> u16 {
    u16::try_from(text.chars().count()).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use dfs_proto::control::{ChunkTotals, Overlay};
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    fn server(n: u32, state: &str) -> ServerStatus {
        ServerStatus {
            id: format!("cs-{n}"),
            state: state.to_owned(),
            chunks: 1234,
            used_bytes: 900 << 30,
            free_bytes: 123 << 30,
            client_read_rate: 100 << 20,
            client_written_rate: 7 << 20,
            last_heartbeat_ms_ago: 412,
            ..ServerStatus::default()
        }
    }

    fn status(servers: u32) -> StatusReply {
        let mut servers: Vec<_> = (1..=servers).map(|n| server(n, "alive")).collect();
        servers[1].state = "dead".to_owned();
        servers[1].overlays.push(Overlay { kind: "suspended".to_owned(), ..Overlay::default() });
        StatusReply {
            servers,
            chunks: Some(ChunkTotals {
                total: 1234,
                safe: 1000,
                degraded: 234,
                ..ChunkTotals::default()
            }),
            phase: "serving".to_owned(),
            epoch: 3,
            replication: 3,
            clients: 2,
            oldest_exposure_ms: Some(135_000),
            copy_backlog_bytes: 3 << 30,
            copy_rate: 100 << 20,
            copy_eta_ms: Some(30_720),
            ..StatusReply::default()
        }
    }

    fn event(number: u64) -> Event {
        Event {
            number,
            at_ns: 86_400_000_000_000 + i64::try_from(number).unwrap() * 1_000_000_000,
            kind: "dead".to_owned(),
            server: "cs-2".to_owned(),
            cause: format!("number {number}: {}\u{1b}", "silent ".repeat(20)),
            lasted_ms: Some(1_500),
        }
    }

    fn drawn(view: &View, columns: u16, lines: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(columns, lines)).unwrap();
        terminal.draw(|frame| view.draw(frame, Instant::now())).unwrap();
        let buffer = terminal.backend().buffer().clone();
        let line = |y| (0..columns).map(|x| buffer[(x, y)].symbol().to_owned()).collect::<String>();
        (0..lines).map(line).collect()
    }

    fn view(servers: u32) -> View {
        let mut view = View::new("127.0.0.1:7000".to_owned());
        let events = (0..30).map(event).collect();
        view.on_news(News::Now(Box::new(status(servers)), events));
        view
    }

    #[test]
    fn everything_is_on_eighty_columns_and_twenty_four_lines() {
        let lines = drawn(&view(4), 80, 24);
        let text = lines.join("\n");
        for part in [
            "127.0.0.1:7000   serving, epoch 3, 3 replicas",
            "chunks  1234: 1000 safe, 234 degraded, 0 endangered, 0 unavailable, 0 lost",
            "rebuild 3.0 GiB to copy at 100 MiB/s, 30 s left; exposed for 2 min 15 s",
            "clients 2        read  400 MiB/s",
            "write 28.0 MiB/s",
            "cs-2     dead (suspen",
            "cs-4     alive",
            "00:00:29 cs-2   dead         number 29: silent",
            "q quit",
        ] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
        let row = &lines[7];
        for part in ["cs-1", "alive", "1234", "900 GiB", "123 GiB", "100 MiB", "7.0 MiB", "0.4 s"] {
            assert!(row.contains(part), "{part} is not in {row}");
        }
        assert!(!text.contains('\u{1b}'), "{text}");
        assert!(lines.iter().any(|line| line.trim_end().ends_with('…')), "{text}");
    }

    #[test]
    fn what_has_no_room_is_said_and_reached() {
        let mut view = view(30);
        let text = drawn(&view, 80, 24).join("\n");
        assert!(text.contains("servers 1 to 12 of 30"), "{text}");
        for _ in 0..100 {
            view.scroll(1);
        }
        let text = drawn(&view, 80, 24).join("\n");
        assert!(text.contains("servers 19 to 30 of 30") && text.contains("cs-30"), "{text}");
        view.scroll(-100);
        assert!(drawn(&view, 80, 24).join("\n").contains("servers 1 to"));
        // Smaller than anybody has: no panic.
        for (columns, lines) in [(1, 1), (10, 3), (30, 8), (300, 100)] {
            drawn(&view, columns, lines);
        }
    }

    #[test]
    fn progress_counts_from_the_most_there_was_to_do() {
        let mut view = view(3);
        let mut later = status(3);
        later.copy_backlog_bytes = 3 << 28;
        view.on_news(News::Now(Box::new(later), Vec::new()));
        let text = drawn(&view, 120, 24).join("\n");
        assert!(text.contains("75 %"), "{text}");
        let whole = StatusReply {
            oldest_exposure_ms: None,
            copy_backlog_bytes: 0,
            copy_eta_ms: None,
            ..status(3)
        };
        view.on_news(News::Now(Box::new(whole), Vec::new()));
        assert!(drawn(&view, 80, 24).join("\n").contains("rebuild nothing to do"));
        assert_eq!(view.most_to_copy, 0);
    }

    #[test]
    fn a_master_that_is_away_is_said_over_what_was_last_heard() {
        let mut view = view(3);
        view.on_news(News::Away("connection refused".to_owned()));
        let text = drawn(&view, 80, 24).join("\n");
        assert!(text.contains("no answer for 0.0 s: connection refused"), "{text}");
        assert!(text.contains("cs-1") && text.contains("the last that was heard"), "{text}");
        view.on_news(News::Now(Box::new(status(3)), Vec::new()));
        assert!(!drawn(&view, 80, 24).join("\n").contains("no answer"));
    }
}
