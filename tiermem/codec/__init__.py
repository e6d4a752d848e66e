"""Values to bytes and back: serialisation, compression, frames and operations."""
