//! A real browser, Chromium without a window, that a test drives by the DevTools protocol over a pipe.
//!
//! Without Chromium, tests that need it are skipped with a line on standard error; with `CI=true` they fail. The browser
//! ends with the test process: its pipe is closed then.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// Names of the program.
const NAMES: [&str; 4] = ["chromium", "chromium-browser", "google-chrome", "chrome"];
/// Limit of each wait.
const LIMIT: Duration = Duration::from_secs(90);

/// Skips a test: says so, and fails if everything has to be there.
pub fn skip(what: &str) {
    assert!(std::env::var("CI").as_deref() != Ok("true"), "no {what}");
    // Not by `eprintln`, which the test runner captures.
    std::io::stderr().lock().write_all(format!("SKIPPED: no {what}\n").as_bytes()).unwrap();
}

fn find() -> Option<PathBuf> {
    let folders: Vec<PathBuf> = std::env::split_paths(&std::env::var_os("PATH")?).collect();
    NAMES.iter().flat_map(|name| folders.iter().map(move |folder| folder.join(name))).find(|path| path.is_file())
}

/// A browser with one page.
pub struct Browser {
    child: Child,
    requests: ChildStdin,
    answers: Receiver<Value>,
    next: u64,
    session: Option<String>,
    /// All events so far.
    pub events: Vec<Value>,
    log: PathBuf,
}

impl Browser {
    /// Starts a browser whose files are in `folder`; `None` if there is none on this machine.
    pub fn start(folder: &Path) -> Option<Browser> {
        let Some(program) = find() else {
            skip("Chromium here: apt-get install chromium");
            return None;
        };
        let log = folder.join("chromium.log");
        // The protocol's messages are read from descriptor 3 and written to descriptor 4.
        let mut child = Command::new("sh")
            .args(["-c", r#"exec "$@" 3<&0 4>&1 0</dev/null 1>&2"#, "sh"])
            .arg(program)
            .args(["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--no-first-run"])
            .args(["--disable-dev-shm-usage", "--disable-background-networking", "--disable-component-update"])
            .args(["--disable-extensions", "--no-proxy-server", "--disable-background-timer-throttling"])
            .arg(format!("--user-data-dir={}", folder.join("chromium").display()))
            .arg("about:blank")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let (requests, mut said) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        let (sender, answers) = channel();
        std::thread::spawn(move || {
            let mut message = Vec::new();
            while said.read_until(0, &mut message).is_ok_and(|read| read > 0) {
                message.pop();
                if sender.send(serde_json::from_slice(&message).unwrap()).is_err() {
                    return;
                }
                message.clear();
            }
        });
        let mut browser = Browser { child, requests, answers, next: 0, session: None, events: Vec::new(), log };
        let page = browser.call("Target.createTarget", &json!({"url": "about:blank"}));
        let target = json!({"targetId": page["targetId"], "flatten": true});
        let attached = browser.call("Target.attachToTarget", &target);
        browser.session = Some(attached["sessionId"].as_str().unwrap().to_owned());
        for domain in ["Page", "Runtime", "Log"] {
            browser.call(&format!("{domain}.enable"), &json!({}));
        }
        Some(browser)
    }

    /// Calls a method of the protocol; returns its result.
    #[track_caller]
    pub fn call(&mut self, method: &str, parameters: &Value) -> Value {
        self.next += 1;
        let mut request = json!({"id": self.next, "method": method, "params": parameters});
        if let Some(session) = &self.session {
            request["sessionId"] = json!(session);
        }
        write!(self.requests, "{request}\0").unwrap();
        loop {
            let Ok(mut answer) = self.answers.recv_timeout(LIMIT) else {
                panic!("{method} is not answered: {}", std::fs::read_to_string(&self.log).unwrap_or_default())
            };
            if answer["id"] == self.next {
                assert!(answer.get("error").is_none(), "{method}: {answer}");
                return answer["result"].take();
            }
            if answer.get("method").is_some() {
                self.events.push(answer);
            }
        }
    }

    /// Evaluates an expression in the page, and waits for its promise.
    #[track_caller]
    pub fn eval(&mut self, expression: &str) -> Value {
        let parameters = json!({"expression": expression, "awaitPromise": true, "returnByValue": true});
        let mut answer = self.call("Runtime.evaluate", &parameters);
        assert!(answer.get("exceptionDetails").is_none(), "{expression}: {answer}");
        answer["result"]["value"].take()
    }

    /// Evaluates an expression until its value is true.
    #[track_caller]
    pub fn until(&mut self, what: &str, expression: &str) {
        let begun = Instant::now();
        while self.eval(&format!("Boolean({expression})")) != true {
            let page = if begun.elapsed() > LIMIT { self.eval("document.body.innerText") } else { Value::Null };
            assert!(page.is_null(), "{what} never came; the page says: {}", page.as_str().unwrap_or_default());
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Opens an address.
    pub fn open(&mut self, address: &str) {
        self.call("Page.navigate", &json!({ "url": address }));
    }

    /// Sets the width of the window, and whether pages are dark.
    pub fn look(&mut self, width: u32, dark: bool) {
        let metrics = json!({"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": false});
        self.call("Emulation.setDeviceMetricsOverride", &metrics);
        let scheme = if dark { "dark" } else { "light" };
        let features = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.call("Emulation.setEmulatedMedia", &features);
    }

    /// Returns a picture of the whole page, as PNG.
    pub fn picture(&mut self) -> Vec<u8> {
        let parameters = json!({"format": "png", "captureBeyondViewport": true});
        let answer = self.call("Page.captureScreenshot", &parameters);
        openssl::base64::decode_block(answer["data"].as_str().unwrap()).unwrap()
    }

    /// Presses a key, such as `Tab`.
    pub fn press(&mut self, key: &str) {
        let code = if key == "Tab" { 9 } else { 13 };
        let text = if key == "Enter" { "\r" } else { "" };
        for kind in ["keyDown", "keyUp"] {
            let parameters =
                json!({"type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code, "text": text});
            self.call("Input.dispatchKeyEvent", &parameters);
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
