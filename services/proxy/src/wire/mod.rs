//! Messages on the wire: buffered connections, bodies and their framing. Knows no routes and no policy.

mod body;
mod coalesce;
mod conn;
mod count;
mod http2;
mod io;
mod keepalive;
mod meter;
mod spare;
mod timer;

pub use body::{BodyError, BodyReader, BodyWriter, Chunk, Turn};
pub use coalesce::{Coalesced, Flusher, Peer, coalesce};
pub use conn::{Conn, IdleState};
pub use count::{ConnectionCount, Counted};
pub use http2::{Http2Reader, Http2Writer, LIBRARY_BUFFER, append, fields_of, is_padded, size_of};
pub use io::Io;
pub use keepalive::{UNACKNOWLEDGED, end_when_gone};
pub use timer::Timer;
