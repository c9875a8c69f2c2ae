//! What the tasks of one shard tell its driver: a queue and one waker. Lives on its core.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use crate::event::Event;

use super::disk;

/// News from a task on this core.
#[derive(Debug)]
pub enum News {
    /// For the machine.
    Event(Event),
    /// From the journal's disk.
    Disk(disk::News),
}

/// The queue.
#[derive(Clone, Default)]
pub struct Local(Rc<State>);

#[derive(Default)]
struct State {
    news: RefCell<VecDeque<News>>,
    waker: Cell<Option<Waker>>,
}

impl Local {
    /// Adds news and wakes the driver.
    pub fn push(&self, news: News) {
        self.0.news.borrow_mut().push_back(news);
        if let Some(waker) = self.0.waker.take() {
            waker.wake();
        }
    }

    /// The oldest news.
    pub fn pop(&self) -> Option<News> {
        self.0.news.borrow_mut().pop_front()
    }

    /// Ready when there is news.
    pub fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.0.news.borrow().is_empty() {
            return Poll::Ready(());
        }
        self.0.waker.set(Some(cx.waker().clone()));
        Poll::Pending
    }
}
