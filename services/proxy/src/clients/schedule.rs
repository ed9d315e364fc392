//! How much of a worker's time the clients of each network get while it is busy.
//!
//! Each task that works for a client is scheduled here. While a worker has time for all, they run as they come. When it is
//! busy and its clients are of several networks, the tasks of those that have used more than the average wait in a queue
//! for each network, from which the network that has used the least goes first (max-min fairness; Demers, Keshav and
//! Shenker, "Analysis and Simulation of a Fair Queueing Algorithm", 1989). Whatever a client floods an edge with, be it
//! handshakes, header blocks or resets, others get their turn after a slice of its time, and not behind all that it sent.

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

use super::{NETWORK_PLACES, Network, NetworkCounts};

/// After each window half of what was used is forgotten, so that an even load counts twice what it takes of a window.
const WINDOW: Duration = Duration::from_millis(50);
/// A worker is busy when its clients' tasks take half of its time; the kernel and connections to endpoints take theirs, too.
const BUSY: u64 = WINDOW.as_micros() as u64;
/// For how many windows a network counts as active after its last task ran.
const ACTIVE_WINDOWS: u8 = 200;
/// The time of one in so many runs is measured, and counts for all of them: the clock costs more than most of them.
const SAMPLED: u32 = 8;
/// The longest time of such a run that counts: most of a longer one was the thread's wait for a core, which is nobody's use.
const LONGEST_SAMPLE: Duration = Duration::from_millis(1);
/// How many tasks may wait. A network's have room while it has less than seven times what is left, so others find some.
const MOST_QUEUED: usize = 16 * 1024;
/// How long tasks from the queues run before sockets are looked at again, and with them those who need not wait.
const SLICE: Duration = Duration::from_micros(500);

/// What the clients of each network have used of a worker's time.
struct Usage {
    networks: Box<[NetworkUsage]>,
    window_end: Cell<Instant>,
    /// What a network may have used, in microseconds, before its tasks wait.
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
            networks: (0..NETWORK_PLACES).map(|_| NetworkUsage::default()).collect(),
            window_end: Cell::new(now + WINDOW),
            average: Cell::new(u64::MAX),
        }
    }

    /// What the network in `place` has used, in microseconds.
    fn of(&self, place: usize) -> u64 {
        self.networks[place].micros.get()
    }

    fn set_active(&self, place: usize) {
        self.networks[place].active.set(ACTIVE_WINDOWS);
    }

    fn is_over_average(&self, place: usize) -> bool {
        self.of(place) >= self.average.get()
    }

    fn add(&self, place: usize, time: Duration, now: Instant) {
        self.networks[place].micros.set(self.of(place).saturating_add(time.as_micros() as u64));
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

/// The tasks of a worker's clients.
pub struct FairSchedule {
    usage: Usage,
    random: Cell<u32>,
    queues: RefCell<Vec<Queue>>,
    queued: NetworkCounts,
    /// How long tasks from the queues have run in this slice; one of them runs or is about to until it is over.
    slice: Cell<Duration>,
    is_slice_over: Cell<bool>,
    /// Of the task that begins a slice.
    waker: RefCell<Option<Waker>>,
    waited: Cell<u64>,
}

/// Tasks that wait, of the networks that share a place.
struct Queue {
    place: usize,
    tasks: VecDeque<Rc<Ticket>>,
}

/// A task's place in a queue.
#[derive(Default)]
struct Ticket {
    /// Nothing when the task was dropped.
    waker: Cell<Option<Waker>>,
    may_run: Cell<bool>,
}

impl FairSchedule {
    /// Nothing has run.
    pub fn new() -> Rc<FairSchedule> {
        Rc::new(FairSchedule {
            usage: Usage::new(Instant::now()),
            random: Cell::new(1),
            queues: RefCell::default(),
            queued: NetworkCounts::new(NETWORK_PLACES),
            slice: Cell::default(),
            is_slice_over: Cell::new(true),
            waker: RefCell::default(),
            waited: Cell::new(0),
        })
    }

    /// How often a task has waited for its turn.
    pub fn waited(&self) -> u64 {
        self.waited.get()
    }

    /// Whether so many tasks for clients in `network` wait that there must not be more of them.
    pub fn is_backed_up(&self, network: Network) -> bool {
        !self.queued.may_add(network, MOST_QUEUED.saturating_sub(self.queued.total() as usize))
    }

    /// A task for a client in `network`.
    pub fn task<F: Future>(self: &Rc<FairSchedule>, network: Network, task: Pin<Box<F>>) -> Scheduled<F> {
        Scheduled { schedule: self.clone(), place: network.place(NETWORK_PLACES), ticket: None, task }
    }

    /// Begins slices for tasks that wait; to be run beside them, for ever.
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
            // Goes on once the runtime has looked at sockets, and run those who need not wait.
            tokio::task::yield_now().await;
            self.slice.set(Duration::ZERO);
            self.is_slice_over.set(false);
            self.run_next();
        }
    }

    /// Lets the next task run, of the network that has used the least; ends the slice when there is none.
    fn run_next(&self) {
        let mut queues = self.queues.borrow_mut();
        loop {
            let used = |(_, queue): &(usize, &mut Queue)| self.usage.of(queue.place);
            let Some((index, queue)) = queues.iter_mut().enumerate().min_by_key(used) else {
                return self.is_slice_over.set(true);
            };
            let Some(ticket) = queue.tasks.pop_front() else {
                queues.swap_remove(index);
                continue;
            };
            self.queued.remove_at(queue.place);
            if let Some(waker) = ticket.waker.take() {
                ticket.may_run.set(true);
                return waker.wake();
            }
        }
    }

    /// A task from the queues has run, or was dropped before.
    fn has_run(&self, time: Duration) {
        self.slice.set(self.slice.get() + time);
        if self.slice.get() < SLICE {
            return self.run_next();
        }
        self.is_slice_over.set(true);
        self.wake();
    }

    fn wait(&self, place: usize, cx: &Context<'_>) -> Rc<Ticket> {
        let ticket =
            Rc::new(Ticket { waker: Cell::new(Some(cx.waker().clone())), may_run: Cell::new(false) });
        let mut queues = self.queues.borrow_mut();
        match queues.iter_mut().find(|queue| queue.place == place) {
            Some(queue) => queue.tasks.push_back(ticket.clone()),
            None => queues.push(Queue { place, tasks: VecDeque::from([ticket.clone()]) }),
        }
        self.queued.add_at(place);
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

    fn is_sampled(&self) -> bool {
        // The upper bits of a linear congruential generator (the constants of "Numerical Recipes").
        let random = self.random.get().wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        self.random.set(random);
        random < u32::MAX / SAMPLED
    }
}

/// A client's task.
pub struct Scheduled<F> {
    schedule: Rc<FairSchedule>,
    place: usize,
    /// While it waits for its turn.
    ticket: Option<Rc<Ticket>>,
    task: Pin<Box<F>>,
}

impl<F: Future> Future for Scheduled<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = &mut *self;
        let schedule = &this.schedule;
        schedule.usage.set_active(this.place);
        match &this.ticket {
            None if schedule.usage.is_over_average(this.place) => {
                this.ticket = Some(schedule.wait(this.place, cx));
                return Poll::Pending;
            }
            // It was woken by what it waits for itself.
            Some(ticket) if !ticket.may_run.get() => {
                ticket.waker.set(Some(cx.waker().clone()));
                return Poll::Pending;
            }
            None if !schedule.is_sampled() => return this.task.as_mut().poll(cx),
            None | Some(_) => {}
        }
        let began = Instant::now();
        let polled = this.task.as_mut().poll(cx);
        let now = Instant::now();
        let time = now - began;
        if this.ticket.take().is_some() {
            schedule.usage.add(this.place, time, now);
            schedule.has_run(time);
        } else {
            schedule.usage.add(this.place, time.min(LONGEST_SAMPLE) * SAMPLED, now);
        }
        polled
    }
}

impl<F> Drop for Scheduled<F> {
    fn drop(&mut self) {
        let Some(ticket) = &self.ticket else { return };
        ticket.waker.set(None);
        if ticket.may_run.get() {
            self.schedule.has_run(Duration::ZERO);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOG: Network = Network::LOCAL;

    /// A network that is told apart from `HOG`.
    fn other() -> Network {
        let place = HOG.place(NETWORK_PLACES);
        let networks = (1..9).map(|last| Network::of([192, 0, last, 1].into()));
        networks.into_iter().find(|network| network.place(NETWORK_PLACES) != place).unwrap()
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
        let [hog, small] = [HOG, other()].map(|network| network.place(NETWORK_PLACES));
        let use_window = |window: u32, hog_takes: u32, small_takes: u32| {
            let at = start + WINDOW * window + WINDOW / 2;
            for (place, percent) in [(hog, hog_takes), (small, small_takes)] {
                if percent > 0 {
                    usage.set_active(place);
                    usage.add(place, WINDOW * percent / 100, at);
                }
            }
            usage.add(hog, Duration::ZERO, at + WINDOW);
            [hog, small].map(|place| usage.is_over_average(place))
        };
        // Nobody else is there.
        assert_eq!(use_window(0, 95, 0), [false, false]);
        assert_eq!(use_window(1, 95, 0), [false, false]);
        assert_eq!(use_window(2, 95, 1), [true, false]);
        // Another that was there a while ago may come again.
        assert_eq!(use_window(3, 95, 0), [true, false]);
        // There is time for all.
        assert_eq!(use_window(20, 40, 1), [false, false]);
        // A long silence is no load.
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
            let [hog, small] = [HOG, other()].map(|network| network.place(NETWORK_PLACES));
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
