//! The terminal view of `tidegate top`: shows frames, scrolls, and ends on `q`.

use std::time::{Duration, Instant};

use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Text};
use ratatui::widgets::Paragraph;

use super::frame::{FrameLine, LineTone};
use super::session::TopSession;
use crate::cli::stop::StopSignal;
use crate::error::{Error, Result};

/// Interval between two frames.
const REFRESH: Duration = Duration::from_secs(1);
/// Longest wait for a key, after which signals are noticed.
const KEY_WAIT: Duration = Duration::from_millis(100);
/// The exit code after Ctrl-C.
const INTERRUPTED: u8 = 130;

/// Shows the job until `q` is pressed; returns the exit code.
pub(super) fn show(session: &mut TopSession) -> Result<u8> {
    let stop = StopSignal::listen()?;
    let failed = |why| Error::new("cannot use the terminal").because(why);
    let mut terminal = ratatui::try_init().map_err(failed)?;
    let shown = run(session, &stop, &mut terminal);
    let restored = ratatui::try_restore().map_err(failed);
    shown.and_then(|code| restored.map(|()| code))
}

fn run(session: &mut TopSession, stop: &StopSignal, terminal: &mut ratatui::DefaultTerminal) -> Result<u8> {
    let failed = |why| Error::new("cannot use the terminal").because(why);
    let (mut frame, mut asked, mut top) = (session.frame(), Instant::now(), 0);
    loop {
        if let Some(code) = stop.exit_code_if_stopped() {
            return Ok(code);
        }
        if asked.elapsed() >= REFRESH {
            (frame, asked) = (session.frame(), Instant::now());
        }
        let area = terminal.size().map_err(failed)?;
        let lines = frame.lines(usize::from(area.width));
        top = top.min(lines.len().saturating_sub(usize::from(area.height)));
        let visible: Vec<_> = lines.iter().skip(top).map(line).collect();
        terminal
            .draw(|screen| screen.render_widget(Paragraph::new(Text::from(visible)), screen.area()))
            .map_err(failed)?;
        if event::poll(KEY_WAIT).map_err(failed)?
            && let Event::Key(KeyEvent { code, modifiers, kind: KeyEventKind::Press, .. }) =
                event::read().map_err(failed)?
        {
            let page = usize::from(area.height).max(2) - 1;
            match code {
                KeyCode::Char('q') => return Ok(0),
                KeyCode::Char('c') if modifiers.contains(KeyModifiers::CONTROL) => return Ok(INTERRUPTED),
                KeyCode::Up => top = top.saturating_sub(1),
                KeyCode::Down => top += 1,
                KeyCode::PageUp => top = top.saturating_sub(page),
                KeyCode::PageDown => top += page,
                KeyCode::Home => top = 0,
                _ => {}
            }
        }
    }
}

fn line(line: &FrameLine) -> Line<'_> {
    let style = match line.tone {
        LineTone::Plain => Style::new(),
        LineTone::Heading => Style::new().add_modifier(Modifier::BOLD),
        LineTone::Good => Style::new().fg(Color::Green),
        LineTone::Attention => Style::new().fg(Color::Yellow),
        LineTone::Bad => Style::new().fg(Color::Red).add_modifier(Modifier::BOLD),
    };
    Line::styled(line.text.as_str(), style)
}
