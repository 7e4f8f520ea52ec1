//! One inotify for the whole process: rings a bell when something in a command's folder changes.

use std::{
    collections::HashMap,
    io,
    os::fd::{AsFd as _, AsRawFd, RawFd},
    path::Path,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use tokio::{io::unix::AsyncFd, sync::Notify};

/// What the reactor needs of an inotify: its descriptor.
struct Source(Inotify);

impl AsRawFd for Source {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

type Bells = Mutex<HashMap<WatchDescriptor, Weak<Notify>>>;

/// Cheap to clone.
#[derive(Clone)]
pub struct Watch {
    inotify: Arc<AsyncFd<Source>>,
    bells: Arc<Bells>,
}

/// A folder that is watched until this is dropped.
pub struct Watched {
    pub bell: Arc<Notify>,
    descriptor: WatchDescriptor,
    watch: Watch,
}

impl Watch {
    /// # Errors
    /// The system's, when there are too many watchers on this machine.
    pub fn start() -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        #[expect(deprecated, reason = "the source owns its descriptor until it is dropped, which is all that is asked")]
        let inotify = AsyncFd::new(Source(inotify))?;
        let watch = Self { inotify: Arc::new(inotify), bells: Arc::default() };
        let (inotify, bells) = (watch.inotify.clone(), Arc::downgrade(&watch.bells));
        #[expect(clippy::disallowed_methods, reason = "it ends with the runtime and holds nothing")]
        tokio::spawn(async move { ring(&inotify, &bells).await });
        Ok(watch)
    }

    /// # Errors
    /// When the folder is not there, or the system allows no more watches.
    pub fn folder(&self, path: &Path) -> io::Result<Watched> {
        let flags = AddWatchFlags::IN_MODIFY
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_CLOSE_WRITE;
        let descriptor = self.inotify.get_ref().0.add_watch(path, flags)?;
        let bell = Arc::new(Notify::new());
        lock(&self.bells).insert(descriptor, Arc::downgrade(&bell));
        Ok(Watched { bell, descriptor, watch: self.clone() })
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        lock(&self.watch.bells).remove(&self.descriptor);
        // The folder may be gone, and its watch with it.
        let _gone = self.watch.inotify.get_ref().0.rm_watch(self.descriptor);
    }
}

async fn ring(inotify: &AsyncFd<Source>, bells: &Weak<Bells>) {
    while let Ok(mut ready) = inotify.readable().await {
        while let Ok(events) = inotify.get_ref().0.read_events() {
            let Some(bells) = bells.upgrade() else { return };
            let bells = lock(&bells);
            for bell in events.iter().filter_map(|event| bells.get(&event.wd)?.upgrade()) {
                bell.notify_one();
            }
        }
        ready.clear_ready();
    }
}

fn lock(bells: &Bells) -> std::sync::MutexGuard<'_, HashMap<WatchDescriptor, Weak<Notify>>> {
    bells.lock().unwrap_or_else(PoisonError::into_inner)
}
