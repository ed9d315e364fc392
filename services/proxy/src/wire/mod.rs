//! Messages on the wire: buffered connections, bodies and their framing. Must not know routes or policies.

mod body;
mod coalesce;
mod conn;
mod count;
mod date;
mod http2;
mod idle;
mod io;
mod keepalive;
mod meter;
mod spare;
mod timer;
mod wake_set;

pub use body::{BodyError, BodyReader, BodyWriter, Chunk, CoopBudget};
pub use coalesce::{Coalesced, Flusher, Peer, coalesce};
pub use conn::{Conn, IdleState};
pub use count::{ConnectionCount, CountGuard};
pub use date::http_date;
pub use http2::{Http2Reader, Http2Writer, LIBRARY_BUFFER, append, fields_of, is_padded, size_of};
pub use idle::{IdleLimits, IdleTimer};
pub use io::Io;
pub use keepalive::{USER_TIMEOUT, set_keepalive};
pub use timer::Timer;
pub use wake_set::WakeSet;
