//! nginx as a reverse proxy to a program of this machine, set up as somebody would who wants
//! it fast: connections to the program are kept, nothing is logged or put in files. The
//! system's, else Debian's package unpacked under the cache directory, which starts no service.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{eventually, peer::cache, stats::cpu};

pub struct Nginx {
    child: Child,
    pub address: SocketAddr,
    _dir: tempfile::TempDir,
}

impl Nginx {
    /// In front of what listens on this port. The error is short enough for a line of the table.
    pub async fn before(port: u16) -> Result<Self, &'static str> {
        let program = find().or_else(unpack).ok_or("not here, and no apt-get to get it with")?;
        let dir = tempfile::Builder::new().prefix("rdev-bench-nginx-").tempdir().expect("a temporary directory");
        let free = std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let address = free.expect("a port");
        let file = dir.path().join("nginx.conf");
        std::fs::write(&file, configuration(dir.path(), address, port)).expect("a file");
        let child = Command::new(program)
            .args(["-e", "stderr", "-p"])
            .arg(dir.path())
            .arg("-c")
            .arg(&file)
            .stdin(Stdio::null())
            .spawn()
            .map_err(|_| "it does not start")?;
        let nginx = Self { child, address, _dir: dir };
        eventually("nginx", Duration::from_secs(10), || async move { std::net::TcpStream::connect(address).ok() })
            .await;
        Ok(nginx)
    }

    /// Of all its processes, in seconds.
    pub fn cpu(&self) -> f64 {
        let pid = self.child.id();
        let workers = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        workers.split_whitespace().filter_map(|worker| worker.parse().ok()).map(cpu).sum()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _gone = kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM);
        let _exit = self.child.wait();
    }
}

fn configuration(dir: &Path, address: SocketAddr, port: u16) -> String {
    let dir = dir.display();
    let files = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
    let files = files.map(|name| format!("{name}_temp_path {dir}/{name};\n")).concat();
    let user = if nix::unistd::Uid::effective().is_root() { "user root;\n" } else { "" };
    format!(
        "daemon off;
{user}pid {dir}/pid;
worker_processes auto;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    {files}
    keepalive_requests 100000000;
    upstream program {{
        server 127.0.0.1:{port};
        keepalive 64;
        keepalive_requests 100000000;
    }}
    server {{
        listen {address} reuseport;
        location / {{
            proxy_pass http://program;
            proxy_http_version 1.1;
            proxy_max_temp_file_size 0;
            proxy_set_header Connection \"\";
            proxy_set_header Host localhost:{port};
            proxy_set_header X-Forwarded-For $remote_addr;
            proxy_set_header X-Forwarded-Host $http_host;
            proxy_set_header X-Forwarded-Proto $scheme;
        }}
    }}
}}
"
    )
}

fn find() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]);
    dirs.map(|dir| dir.join("nginx")).chain([unpacked()]).find(|file| file.exists())
}

fn unpacked() -> PathBuf {
    cache().join("rdev-bench/nginx/usr/sbin/nginx")
}

fn unpack() -> Option<PathBuf> {
    let dir = cache().join("rdev-bench/nginx");
    std::fs::create_dir_all(&dir).ok()?;
    let script = "apt-get download -qq nginx >&2 && for package in nginx_*.deb; do dpkg -x \"$package\" .; done";
    let done = Command::new("sh").args(["-c", script]).current_dir(&dir).stdin(Stdio::null()).status();
    (done.is_ok_and(|exit| exit.success()) && unpacked().exists()).then(unpacked)
}
