//! Messages on the wire: buffered connections, bodies and their framing. Knows no routes and no policy.

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

pub use body::{BodyError, BodyReader, BodyWriter, Chunk, Turn};
pub use coalesce::{Coalesced, Flusher, Peer, coalesce};
pub use conn::{Conn, IdleState};
pub use count::{ConnectionCount, Counted};
pub use date::http_date;
pub use http2::{Http2Reader, Http2Writer, LIBRARY_BUFFER, append, fields_of, is_padded, size_of};
pub use idle::{IdleLimits, IdleTimer};
pub use io::Io;
pub use keepalive::{UNACKNOWLEDGED, end_when_gone};
pub use timer::Timer;
pub use wake_set::WakeSet;
