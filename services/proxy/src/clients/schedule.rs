//! Fair scheduling of a worker's time between client networks.
//!
//! Every client task is scheduled here. While a worker is not busy, tasks run as they are woken. When it is busy with
//! clients of several networks, the tasks of networks that have used more than the average wait in one queue per
//! network, and the network that has used the least runs next (max-min fairness; Demers, Keshav and Shenker, "Analysis
//! and Simulation of a Fair Queueing Algorithm", 1989). Whatever a client floods an edge with (handshakes, header
//! blocks, resets), others run after one slice of its time instead of behind its whole backlog.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    future::{Future, poll_fn},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use tokio::time::Instant;

use super::{NETWORK_BUCKETS, Network, NetworkCounts};

/// Usage is halved after each window, so a steady load counts twice its use of a window.
const WINDOW: Duration = Duration::from_millis(50);
/// A worker is busy when its client tasks take half of its time; the kernel and upstream connections need the rest.
const BUSY: u64 = WINDOW.as_micros() as u64;
/// How many windows a network counts as active after its last task ran.
const ACTIVE_WINDOWS: u8 = 200;
/// One in so many runs is measured and counts for all of them: reading the clock costs more than most runs.
const SAMPLED: u32 = 8;
/// The longest measured time that counts: in a longer one the thread mostly waited for a core.
const LONGEST_SAMPLE: Duration = Duration::from_millis(1);
/// The maximum number of queued tasks, shared by networks as in [`NetworkCounts::may_add`].
const MOST_QUEUED: usize = 16 * 1024;
/// How long queued tasks run before sockets and unqueued tasks are polled again.
const SLICE: Duration = Duration::from_micros(500);

/// The worker time used by each client network.
struct Usage {
    networks: Box<[NetworkUsage]>,
    window_end: Cell<Instant>,
    /// The usage in microseconds from which a network's tasks are queued.
    average: Cell<u64>,
}

#[derive(Default)]
struct NetworkUsage {
    micros: Cell<u64>,
    active: Cell<u8>,
}

impl Usage {
    fn new(now: Instant) -> Usage {
        Usage {
            networks: (0..NETWORK_BUCKETS).map(|_| NetworkUsage::default()).collect(),
            window_end: Cell::new(now + WINDOW),
            average: Cell::new(u64::MAX),
        }
    }

    /// The usage of a bucket in microseconds.
    fn of(&self, bucket: usize) -> u64 {
        self.networks[bucket].micros.get()
    }

    fn set_active(&self, bucket: usize) {
        self.networks[bucket].active.set(ACTIVE_WINDOWS);
    }

    fn is_over_average(&self, bucket: usize) -> bool {
        self.of(bucket) >= self.average.get()
    }

    fn add(&self, bucket: usize, time: Duration, now: Instant) {
        self.networks[bucket].micros.set(self.of(bucket).saturating_add(time.as_micros() as u64));
        if now >= self.window_end.get() {
            self.end_window(now);
        }
    }

    fn end_window(&self, now: Instant) {
        let late = now.duration_since(self.window_end.get()).as_nanos() / WINDOW.as_nanos();
        let earlier = u32::try_from(late).unwrap_or(u32::MAX).min(63);
        let (mut used, mut active) = (0, 0);
        for network in &self.networks {
            let micros = network.micros.get() >> earlier;
            used += micros;
            network.micros.set(micros / 2);
            let windows = u32::from(network.active.get()).saturating_sub(earlier + 1);
            active += u64::from(network.active.replace(windows as u8) > 0);
        }
        let must_share = used >= BUSY && active > 1;
        self.average.set(if must_share { used / 2 / active } else { u64::MAX });
        self.window_end.set(now + WINDOW);
    }
}

/// The fair scheduler of a worker's client tasks.
pub struct FairSchedule {
    usage: Usage,
    random: Cell<u32>,
    queues: RefCell<Vec<Queue>>,
    queued: NetworkCounts,
    /// How long queued tasks have run in this slice.
    slice: Cell<Duration>,
    is_slice_over: Cell<bool>,
    /// The waker of the task that begins slices.
    waker: RefCell<Option<Waker>>,
    waited: Cell<u64>,
}

/// Queued tasks of the networks in one bucket.
struct Queue {
    bucket: usize,
    tasks: VecDeque<Rc<Ticket>>,
}

/// A queued task.
#[derive(Default)]
struct Ticket {
    /// Nothing if the task was dropped.
    waker: Cell<Option<Waker>>,
    may_run: Cell<bool>,
}

impl FairSchedule {
    /// An idle scheduler.
    pub fn new() -> Rc<FairSchedule> {
        Rc::new(FairSchedule {
            usage: Usage::new(Instant::now()),
            random: Cell::new(1),
            queues: RefCell::default(),
            queued: NetworkCounts::new(NETWORK_BUCKETS),
            slice: Cell::default(),
            is_slice_over: Cell::new(true),
            waker: RefCell::default(),
            waited: Cell::new(0),
        })
    }

    /// How often a task was queued.
    pub fn waited(&self) -> u64 {
        self.waited.get()
    }

    /// Whether so many tasks for clients in `network` are queued that no more are accepted.
    pub fn is_backed_up(&self, network: Network) -> bool {
        !self.queued.may_add(network, MOST_QUEUED.saturating_sub(self.queued.total() as usize))
    }

    /// Wraps a task for a client in `network`.
    pub fn task<F: Future>(self: &Rc<FairSchedule>, network: Network, task: Pin<Box<F>>) -> Scheduled<F> {
        Scheduled { schedule: self.clone(), bucket: network.bucket(NETWORK_BUCKETS), ticket: None, task }
    }

    /// Begins slices for queued tasks, for ever. Runs beside the tasks.
    pub async fn run(self: Rc<FairSchedule>) {
        loop {
            poll_fn(|cx| {
                *self.waker.borrow_mut() = Some(cx.waker().clone());
                if self.is_slice_over.get() && !self.queues.borrow().is_empty() {
                    Poll::Ready(())
                } else {
                    Poll::Pending
                }
            })
            .await;
            // Continues after the runtime has polled sockets and unqueued tasks.
            tokio::task::yield_now().await;
            self.slice.set(Duration::ZERO);
            self.is_slice_over.set(false);
            self.run_next();
        }
    }

    /// Runs the next task of the network that has used the least; ends the slice if there is none.
    fn run_next(&self) {
        let mut queues = self.queues.borrow_mut();
        loop {
            let used = |(_, queue): &(usize, &mut Queue)| self.usage.of(queue.bucket);
            let Some((index, queue)) = queues.iter_mut().enumerate().min_by_key(used) else {
                return self.is_slice_over.set(true);
            };
            let Some(ticket) = queue.tasks.pop_front() else {
                queues.swap_remove(index);
                continue;
            };
            self.queued.remove_from_bucket(queue.bucket);
            if let Some(waker) = ticket.waker.take() {
                ticket.may_run.set(true);
                return waker.wake();
            }
        }
    }

    /// Records that a queued task has run for `time`, or was dropped.
    fn record_run(&self, time: Duration) {
        self.slice.set(self.slice.get() + time);
        if self.slice.get() < SLICE {
            return self.run_next();
        }
        self.is_slice_over.set(true);
        self.wake();
    }

    fn wait(&self, bucket: usize, cx: &Context<'_>) -> Rc<Ticket> {
        let ticket =
            Rc::new(Ticket { waker: Cell::new(Some(cx.waker().clone())), may_run: Cell::new(false) });
        let mut queues = self.queues.borrow_mut();
        match queues.iter_mut().find(|queue| queue.bucket == bucket) {
            Some(queue) => queue.tasks.push_back(ticket.clone()),
            None => queues.push(Queue { bucket, tasks: VecDeque::from([ticket.clone()]) }),
        }
        self.queued.add_to_bucket(bucket);
        self.waited.set(self.waited.get() + 1);
        if self.is_slice_over.get() {
            self.wake();
        }
        ticket
    }

    fn wake(&self) {
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }

    /// Draws whether the time of a run is measured.
    fn draw_sample(&self) -> bool {
        // The upper bits of a linear congruential generator (the constants of "Numerical Recipes").
        let random = self.random.get().wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        self.random.set(random);
        random < u32::MAX / SAMPLED
    }
}

/// A client's task.
pub struct Scheduled<F> {
    schedule: Rc<FairSchedule>,
    bucket: usize,
    /// Its ticket while it is queued.
    ticket: Option<Rc<Ticket>>,
    task: Pin<Box<F>>,
}

impl<F: Future> Future for Scheduled<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = &mut *self;
        let schedule = &this.schedule;
        schedule.usage.set_active(this.bucket);
        match &this.ticket {
            None if schedule.usage.is_over_average(this.bucket) => {
                this.ticket = Some(schedule.wait(this.bucket, cx));
                return Poll::Pending;
            }
            // Woken by its own events while it is queued.
            Some(ticket) if !ticket.may_run.get() => {
                ticket.waker.set(Some(cx.waker().clone()));
                return Poll::Pending;
            }
            None if !schedule.draw_sample() => return this.task.as_mut().poll(cx),
            None | Some(_) => {}
        }
        let began = Instant::now();
        let polled = this.task.as_mut().poll(cx);
        let now = Instant::now();
        let time = now - began;
        if this.ticket.take().is_some() {
            schedule.usage.add(this.bucket, time, now);
            schedule.record_run(time);
        } else {
            schedule.usage.add(this.bucket, time.min(LONGEST_SAMPLE) * SAMPLED, now);
        }
        polled
    }
}

impl<F> Drop for Scheduled<F> {
    fn drop(&mut self) {
        let Some(ticket) = &self.ticket else { return };
        ticket.waker.set(None);
        if ticket.may_run.get() {
            self.schedule.record_run(Duration::ZERO);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOG: Network = Network::LOCAL;

    /// A network in another bucket than `HOG`.
    fn other() -> Network {
        let bucket = HOG.bucket(NETWORK_BUCKETS);
        let networks = (1..9).map(|last| Network::of([192, 0, last, 1].into()));
        networks.into_iter().find(|network| network.bucket(NETWORK_BUCKETS) != bucket).unwrap()
    }

    fn run(task: impl Future<Output = ()>) {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_all().event_interval(31);
        runtime.build_local(tokio::runtime::LocalOptions::default()).unwrap().block_on(task);
    }

    /// Is always ready to work for a while, `times` in all.
    async fn busy(mut times: u32, each: Duration) {
        poll_fn(|cx| {
            let began = std::time::Instant::now();
            while began.elapsed() < each {}
            times -= 1;
            cx.waker().wake_by_ref();
            if times == 0 { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    #[test]
    fn those_that_have_used_more_than_the_average_wait_while_a_worker_is_busy() {
        let start = Instant::now();
        let usage = Usage::new(start);
        let [hog, small] = [HOG, other()].map(|network| network.bucket(NETWORK_BUCKETS));
        let use_window = |window: u32, hog_takes: u32, small_takes: u32| {
            let at = start + WINDOW * window + WINDOW / 2;
            for (bucket, percent) in [(hog, hog_takes), (small, small_takes)] {
                if percent > 0 {
                    usage.set_active(bucket);
                    usage.add(bucket, WINDOW * percent / 100, at);
                }
            }
            usage.add(hog, Duration::ZERO, at + WINDOW);
            [hog, small].map(|bucket| usage.is_over_average(bucket))
        };
        // Nobody else is there.
        assert_eq!(use_window(0, 95, 0), [false, false]);
        assert_eq!(use_window(1, 95, 0), [false, false]);
        assert_eq!(use_window(2, 95, 1), [true, false]);
        // Another that was there a while ago may come again.
        assert_eq!(use_window(3, 95, 0), [true, false]);
        // There is time for all.
        assert_eq!(use_window(20, 40, 1), [false, false]);
        // A long idle period is no load.
        use_window(21, 95, 1);
        assert_eq!(use_window(22, 95, 1), [true, false]);
        assert_eq!(use_window(20_000, 10, 1), [false, false]);
    }

    #[test]
    fn a_client_does_not_wait_behind_all_that_another_network_sends() {
        run(async {
            let schedule = FairSchedule::new();
            tokio::task::spawn_local(schedule.clone().run());
            for _ in 0..400 {
                let hog = busy(100_000, Duration::from_micros(500));
                tokio::task::spawn_local(schedule.task(HOG, Box::pin(hog)));
            }
            let bystander = async {
                let mut late = Vec::new();
                for _ in 0..60 {
                    let due = Instant::now() + Duration::from_millis(5);
                    tokio::time::sleep_until(due).await;
                    late.push(due.elapsed());
                }
                late.sort_unstable();
                // In turn with all others, it would be 200 ms late each time.
                assert!(late[45] < Duration::from_millis(50), "{late:?}");
            };
            tokio::task::spawn_local(schedule.task(other(), Box::pin(bystander))).await.unwrap();
            assert!(schedule.waited() > 0);
        });
    }

    #[test]
    fn no_network_takes_all_places_of_those_that_wait() {
        run(async {
            let schedule = FairSchedule::new();
            let cx = Context::from_waker(Waker::noop());
            let [hog, small] = [HOG, other()].map(|network| network.bucket(NETWORK_BUCKETS));
            while !schedule.is_backed_up(HOG) {
                schedule.wait(hog, &cx);
            }
            assert_eq!(schedule.queued.of(HOG), 14 * 1024);
            assert!(!schedule.is_backed_up(other()));
            schedule.wait(small, &cx);
            assert!(schedule.is_backed_up(HOG));
            schedule.run_next();
            assert!(!schedule.is_backed_up(HOG));
        });
    }

    #[test]
    fn those_that_wait_run_to_their_end_and_may_be_dropped() {
        run(async {
            let schedule = FairSchedule::new();
            schedule.usage.average.set(0);
            tokio::task::spawn_local(schedule.clone().run());
            let task = |network| {
                let task = busy(20, Duration::from_micros(1));
                tokio::task::spawn_local(schedule.task(network, Box::pin(task)))
            };
            let tasks: Vec<_> =
                (0..30).map(|number| task(if number % 3 == 0 { other() } else { HOG })).collect();
            for _ in 0..5 {
                tokio::task::yield_now().await;
            }
            tasks.iter().step_by(2).for_each(tokio::task::JoinHandle::abort);
            for (number, task) in tasks.into_iter().enumerate() {
                assert_eq!(task.await.is_ok(), number % 2 == 1, "{number}");
            }
            task(HOG).await.unwrap();
            assert!(schedule.is_slice_over.get() && schedule.queues.borrow().is_empty());
        });
    }
}
