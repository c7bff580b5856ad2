//! What the backends of a server share: a slot for each database that has a sequencer.
//!
//! A slot is claimed once and keeps its database as long as the shared memory lives. All fields are atomics; the
//! condition variable has a lock of its own. Without preloading there is no shared memory, and no slot.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicPtr, AtomicU32, Ordering};

use pgrx::pg_guard;
use pgrx::pg_sys;

use crate::guc;

/// What is shared about one database.
#[repr(C)]
pub struct Slot {
    /// Oid of the database; 0 = the slot is free.
    database: AtomicU32,
    /// Newest position that is durable and visible; 0 = not known yet.
    pub head: AtomicI64,
    /// Newest position of a step that commits or has: a standby may show it before this server does.
    pub committing: AtomicI64,
    /// The era of this incarnation of the shared memory has begun.
    pub era_begun: AtomicBool,
    /// Somebody asks the launcher to start a sequencer.
    pub wanted: AtomicBool,
    /// The extension is in its database no more.
    left: AtomicBool,
    /// Until when no sequencer may be here, in microseconds since 1970: somebody drops or copies the database.
    pub paused_until_us: AtomicI64,
    worker_pid: AtomicU32,
    worker_latch: AtomicPtr<pg_sys::Latch>,
    head_moved: pg_sys::ConditionVariable,
}

#[repr(C)]
struct Shared {
    launcher_latch: AtomicPtr<pg_sys::Latch>,
    /// Somebody claims a slot.
    claiming: AtomicBool,
    /// The highest head that a slot had which was released.
    passed: AtomicI64,
    slots: [Slot; 0],
}

static SHARED: AtomicPtr<Shared> = AtomicPtr::new(std::ptr::null_mut());
static mut PREVIOUS_REQUEST_HOOK: pg_sys::shmem_request_hook_type = None;
static mut PREVIOUS_STARTUP_HOOK: pg_sys::shmem_startup_hook_type = None;

fn shared_bytes() -> usize {
    size_of::<Shared>() + guc::max_databases() * size_of::<Slot>()
}

/// Asks for the shared memory; only while the postmaster preloads libraries.
pub fn reserve() {
    // SAFETY: hooks are chained by the postmaster alone, before it has any child.
    unsafe {
        PREVIOUS_REQUEST_HOOK = pg_sys::shmem_request_hook;
        pg_sys::shmem_request_hook = Some(request);
        PREVIOUS_STARTUP_HOOK = pg_sys::shmem_startup_hook;
        pg_sys::shmem_startup_hook = Some(startup);
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn request() {
    // SAFETY: called by the postmaster when it counts its shared memory.
    unsafe {
        if let Some(previous) = PREVIOUS_REQUEST_HOOK {
            previous();
        }
        pg_sys::RequestAddinShmemSpace(shared_bytes());
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn startup() {
    // SAFETY: called by the postmaster once the memory is there; a child that is forked later has it at the same
    // address. All-zero bytes are a valid Shared with free slots but for the condition variables.
    unsafe {
        if let Some(previous) = PREVIOUS_STARTUP_HOOK {
            previous();
        }
        let mut found = false;
        let memory = pg_sys::ShmemInitStruct(c"shapefeed".as_ptr(), shared_bytes(), &mut found)
            .cast::<Shared>();
        if !found {
            memory.cast::<u8>().write_bytes(0, shared_bytes());
            let slots = (&raw mut (*memory).slots).cast::<Slot>();
            for number in 0..guc::max_databases() {
                pg_sys::ConditionVariableInit(&raw mut (*slots.add(number)).head_moved);
            }
        }
        SHARED.store(memory, Ordering::Release);
    }
}

/// The library was preloaded.
pub fn preloaded() -> bool {
    !SHARED.load(Ordering::Acquire).is_null()
}

/// All slots; none when the library was not preloaded.
pub fn slots() -> &'static [Slot] {
    let shared = SHARED.load(Ordering::Acquire);
    if shared.is_null() {
        return &[];
    }
    // SAFETY: the memory has max_databases slots behind its head, and lives as long as the process.
    unsafe {
        std::slice::from_raw_parts(
            (&raw const (*shared).slots).cast::<Slot>(),
            guc::max_databases(),
        )
    }
}

/// The highest position of databases, or extensions, that are gone and whose slots others may have by now.
pub fn passed() -> i64 {
    let shared = SHARED.load(Ordering::Acquire);
    if shared.is_null() {
        return 0;
    }
    // SAFETY: as in slots().
    unsafe { (*shared).passed.load(Ordering::Acquire) }
}

/// The slot of a database, claimed now if it has none. None: not preloaded, or all slots are taken.
pub fn slot(database: u32) -> Option<&'static Slot> {
    existing_slot(database).or_else(|| claim(database))
}

/// Claims a free slot. One at a time: a slot that is given back meanwhile, in front of the one that the database has got, must
/// not become a second one.
fn claim(database: u32) -> Option<&'static Slot> {
    let shared = SHARED.load(Ordering::Acquire);
    if shared.is_null() {
        return None;
    }
    // SAFETY: as in slots(). Held for a few loads; a process that dies in between takes the server with it.
    let claiming = unsafe { &(*shared).claiming };
    while claiming.swap(true, Ordering::Acquire) {
        std::hint::spin_loop();
    }
    let slot = existing_slot(database).or_else(|| {
        let free = |slot: &&Slot| slot.database.load(Ordering::Acquire) == 0;
        let slot = slots().iter().find(free)?;
        slot.database.store(database, Ordering::Release);
        Some(slot)
    });
    claiming.store(false, Ordering::Release);
    slot
}

/// The slot of a database that has one.
pub fn existing_slot(database: u32) -> Option<&'static Slot> {
    slots()
        .iter()
        .find(|slot| slot.database.load(Ordering::Acquire) == database)
}

impl Slot {
    /// Oid of its database; 0 = free.
    pub fn database(&self) -> u32 {
        self.database.load(Ordering::Acquire)
    }

    /// The extension is in its database no more: unless somebody asks for a sequencer all the same, the launcher releases it.
    pub fn leave(&self) {
        self.left.store(true, Ordering::Release);
        wake_launcher();
    }

    /// Nobody needs it any more, though its database is there.
    pub fn is_left(&self) -> bool {
        self.left.load(Ordering::Acquire) && !self.wanted.load(Ordering::Acquire)
    }

    /// Its database, or the extension there, is gone: another one may have the slot.
    pub fn release(&self) {
        self.left.store(false, Ordering::Release);
        self.committing.store(0, Ordering::Release);
        let head = self.head.swap(0, Ordering::AcqRel);
        let shared = SHARED.load(Ordering::Acquire);
        // SAFETY: there is a slot, so there is the memory; it lives as long as the process.
        unsafe { (*shared).passed.fetch_max(head, Ordering::AcqRel) };
        self.era_begun.store(false, Ordering::Release);
        self.wanted.store(false, Ordering::Release);
        self.paused_until_us.store(0, Ordering::Release);
        self.database.store(0, Ordering::Release);
    }

    /// Makes this process the sequencer of the slot's database; false if there is one. Two would each go on from what
    /// they remember, and give one transaction two positions.
    pub fn register_worker(&self) -> bool {
        let registered = self.replace_worker(0, my_pid());
        if registered {
            // SAFETY: MyLatch is the process latch in shared memory once a background worker has started.
            unsafe { self.worker_latch.store(pg_sys::MyLatch, Ordering::Release) }
        }
        registered
    }

    /// This process is not the sequencer any more. Said again, when another one may be by now, it means nothing.
    pub fn unregister_worker(&self) {
        if self.worker_pid() == my_pid() {
            self.worker_latch
                .store(std::ptr::null_mut(), Ordering::Release);
            self.replace_worker(my_pid(), 0);
        }
    }

    fn replace_worker(&self, from: u32, to: u32) -> bool {
        self.worker_pid
            .compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }

    /// Process id of the sequencer; 0 = none runs.
    pub fn worker_pid(&self) -> u32 {
        self.worker_pid.load(Ordering::Acquire)
    }

    /// Wakes the sequencer. Says whether there is one.
    pub fn wake_worker(&self) -> bool {
        set_latch(&self.worker_latch)
    }

    /// Asks the launcher to start a sequencer here.
    pub fn want_worker(&self) {
        self.left.store(false, Ordering::Release);
        self.wanted.store(true, Ordering::Release);
        wake_launcher();
    }

    /// Publishes a new head and wakes those that wait for it.
    pub fn publish_head(&self, position: i64) {
        self.head.fetch_max(position, Ordering::AcqRel);
        // SAFETY: initialized at startup; in shared memory.
        unsafe { pg_sys::ConditionVariableBroadcast(self.head_moved()) }
    }

    /// Sleeps until the head is above `after` or `timeout_ms` have passed.
    pub fn wait_for_head(&self, after: i64, timeout_ms: i64) {
        let deadline = super::xact::clock_us() + timeout_ms * 1000;
        // SAFETY: prepared and cancelled in pairs (an error cancels too); interrupts are served inside.
        unsafe {
            pg_sys::ConditionVariablePrepareToSleep(self.head_moved());
            while self.head.load(Ordering::Acquire) <= after {
                let left_ms = (deadline - super::xact::clock_us() + 999) / 1000;
                if left_ms <= 0 {
                    break;
                }
                pg_sys::ConditionVariableTimedSleep(
                    self.head_moved(),
                    left_ms,
                    pg_sys::PG_WAIT_EXTENSION,
                );
            }
            pg_sys::ConditionVariableCancelSleep();
        }
    }

    fn head_moved(&self) -> *mut pg_sys::ConditionVariable {
        (&raw const self.head_moved).cast_mut()
    }
}

fn my_pid() -> u32 {
    // SAFETY: a variable of the process, set once.
    unsafe { pg_sys::MyProcPid as u32 }
}

/// This process is the launcher.
pub fn register_launcher() {
    let shared = SHARED.load(Ordering::Acquire);
    if !shared.is_null() {
        // SAFETY: the memory lives as long as the process; MyLatch is in shared memory.
        unsafe {
            (*shared)
                .launcher_latch
                .store(pg_sys::MyLatch, Ordering::Release)
        }
    }
}

/// Wakes the launcher, if there is one.
pub fn wake_launcher() {
    let shared = SHARED.load(Ordering::Acquire);
    if !shared.is_null() {
        // SAFETY: as above.
        unsafe { set_latch(&(*shared).launcher_latch) };
    }
}

fn set_latch(latch: &AtomicPtr<pg_sys::Latch>) -> bool {
    let latch = latch.load(Ordering::Acquire);
    if latch.is_null() {
        return false;
    }
    // SAFETY: a process latch lives in shared memory for ever; at worst its slot belongs to another process by now,
    // which looks around once for nothing.
    unsafe { pg_sys::SetLatch(latch) };
    true
}
