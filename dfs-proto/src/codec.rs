//! The byte form of our own types: log commands, records, frames' arguments.
//!
//! Integers are little-endian. Structs and enum variants are written as `u32 length` and their fields in order: a
//! reader skips what it does not know at the end, and takes the default for fields that an older writer did not have.
//! Decoders are total: any bytes give a value or a [`DecodeError`], memory is bounded by the input's length, and
//! nesting is bounded because no type contains itself.

/// Bytes that are not what they should be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DecodeError {
    #[error("input ends inside {0}")]
    Short(&'static str),
    #[error("unknown tag {tag} of {of}")]
    Tag { of: &'static str, tag: u32 },
    #[error("{0} out of range")]
    Range(&'static str),
    #[error("{0} bytes left over")]
    Trailing(usize),
}

/// A cursor over untrusted bytes.
#[derive(Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    #[must_use]
    pub fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// The next `len` bytes.
    ///
    /// # Errors
    /// `Short` if fewer are left.
    pub fn take(&mut self, len: usize, what: &'static str) -> Result<&'a [u8], DecodeError> {
        let (head, tail) = self.rest.split_at_checked(len).ok_or(DecodeError::Short(what))?;
        self.rest = tail;
        Ok(head)
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], DecodeError> {
        let bytes = self.take(N, what)?;
        bytes.try_into().map_err(|_| DecodeError::Short(what))
    }
}

/// A value with one byte form.
pub trait Wire: Sized {
    fn put(&self, out: &mut Vec<u8>);

    /// # Errors
    /// See [`DecodeError`].
    fn get(input: &mut Reader<'_>) -> Result<Self, DecodeError>;

    /// The value of a field that an older writer did not have.
    ///
    /// # Errors
    /// `Short` unless the type has a natural empty value.
    fn absent() -> Result<Self, DecodeError> {
        Err(DecodeError::Short("field"))
    }

    fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64);
        self.put(&mut out);
        out
    }

    /// The value that `bytes` are the whole form of.
    ///
    /// # Errors
    /// See [`DecodeError`].
    fn from_bytes(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut input = Reader::new(bytes);
        let value = Self::get(&mut input)?;
        match input.remaining() {
            0 => Ok(value),
            left => Err(DecodeError::Trailing(left)),
        }
    }
}

macro_rules! integers {
    ($($int:ty),*) => {$(
        impl Wire for $int {
            fn put(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }
            fn get(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
                input.array(stringify!($int)).map(Self::from_le_bytes)
            }
            fn absent() -> Result<Self, DecodeError> {
                Ok(0)
            }
        }
    )*};
}
integers!(u8, u16, u32, u64, u128, i32, i64);

impl Wire for bool {
    fn put(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }
    fn get(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        match u8::get(input)? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(DecodeError::Range("bool")),
        }
    }
    fn absent() -> Result<Self, DecodeError> {
        Ok(false)
    }
}

fn put_len(len: usize, out: &mut Vec<u8>) {
    // Everything of ours is bounded far below 4 GiB before it is encoded.
    u32::try_from(len).unwrap_or(u32::MAX).put(out);
}

fn get_len(input: &mut Reader<'_>, what: &'static str) -> Result<usize, DecodeError> {
    let len = u32::get(input)? as usize;
    if input.remaining() < len { Err(DecodeError::Short(what)) } else { Ok(len) }
}

impl Wire for String {
    fn put(&self, out: &mut Vec<u8>) {
        put_len(self.len(), out);
        out.extend_from_slice(self.as_bytes());
    }
    fn get(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let len = get_len(input, "string")?;
        let bytes = input.take(len, "string")?;
        std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| DecodeError::Range("UTF-8"))
    }
    fn absent() -> Result<Self, DecodeError> {
        Ok(Self::new())
    }
}

/// Byte strings; a `Vec<u8>` costs its length, not a call per byte.
impl Wire for Vec<u8> {
    fn put(&self, out: &mut Vec<u8>) {
        put_len(self.len(), out);
        out.extend_from_slice(self);
    }
    fn get(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let len = get_len(input, "bytes")?;
        input.take(len, "bytes").map(<[u8]>::to_vec)
    }
    fn absent() -> Result<Self, DecodeError> {
        Ok(Self::new())
    }
}

impl<T: Wire> Wire for Option<T> {
    fn put(&self, out: &mut Vec<u8>) {
        match self {
            None => out.push(0),
            Some(value) => {
                out.push(1);
                value.put(out);
            }
        }
    }
    fn get(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(if bool::get(input)? { Some(T::get(input)?) } else { None })
    }
    fn absent() -> Result<Self, DecodeError> {
        Ok(None)
    }
}

impl<A: Wire, B: Wire> Wire for (A, B) {
    fn put(&self, out: &mut Vec<u8>) {
        self.0.put(out);
        self.1.put(out);
    }
    fn get(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok((A::get(input)?, B::get(input)?))
    }
}

/// Writes a list: `u32` count, then the elements.
pub fn put_list<T: Wire>(list: &[T], out: &mut Vec<u8>) {
    put_len(list.len(), out);
    list.iter().for_each(|item| item.put(out));
}

/// Reads what [`put_list`] wrote.
///
/// # Errors
/// See [`DecodeError`]; the count is checked against what is left before anything is allocated.
pub fn get_list<T: Wire>(input: &mut Reader<'_>) -> Result<Vec<T>, DecodeError> {
    let count = u32::get(input)? as usize;
    // Each element has at least one byte.
    if input.remaining() < count {
        return Err(DecodeError::Short("list"));
    }
    // Not `with_capacity(count)`: an element may be larger in memory than on the wire.
    let mut list = Vec::with_capacity(count.min(1024));
    for _ in 0..count {
        list.push(T::get(input)?);
    }
    Ok(list)
}

/// Lists of structured elements (a blanket `Vec<T>` would collide with byte strings).
macro_rules! wire_list {
    ($($item:ty),* $(,)?) => {$(
        impl $crate::codec::Wire for Vec<$item> {
            fn put(&self, out: &mut Vec<u8>) {
                $crate::codec::put_list(self, out);
            }
            fn get(input: &mut $crate::codec::Reader<'_>) -> Result<Self, $crate::codec::DecodeError> {
                $crate::codec::get_list(input)
            }
            fn absent() -> Result<Self, $crate::codec::DecodeError> {
                Ok(Self::new())
            }
        }
    )*};
}
pub(crate) use wire_list;

/// Newtypes around one wire value.
macro_rules! wire_newtype {
    ($($name:ident($inner:ty)),* $(,)?) => {$(
        impl $crate::codec::Wire for $name {
            fn put(&self, out: &mut Vec<u8>) {
                self.0.put(out);
            }
            fn get(input: &mut $crate::codec::Reader<'_>) -> Result<Self, $crate::codec::DecodeError> {
                <$inner>::get(input).map($name)
            }
            fn absent() -> Result<Self, $crate::codec::DecodeError> {
                <$inner>::absent().map($name)
            }
        }
    )*};
}
pub(crate) use wire_newtype;

/// Writes a length-prefixed group of fields.
pub fn put_group(out: &mut Vec<u8>, fields: impl FnOnce(&mut Vec<u8>)) {
    let at = out.len();
    out.extend_from_slice(&[0; 4]);
    fields(out);
    let len = u32::try_from(out.len() - at - 4).unwrap_or(u32::MAX);
    out[at..at + 4].copy_from_slice(&len.to_le_bytes());
}

/// The reader of one group's fields; what it leaves unread is skipped.
///
/// # Errors
/// `Short` if the group is longer than the input.
pub fn get_group<'a>(
    input: &mut Reader<'a>,
    what: &'static str,
) -> Result<Reader<'a>, DecodeError> {
    let len = get_len(input, what)?;
    input.take(len, what).map(Reader::new)
}

/// One field of a group: its value, or its default if the writer did not know it.
///
/// # Errors
/// See [`DecodeError`].
pub fn get_field<T: Wire>(group: &mut Reader<'_>) -> Result<T, DecodeError> {
    if group.remaining() == 0 { T::absent() } else { T::get(group) }
}

/// A struct as a group of its fields, in the order given. Fields are only ever added at the end.
macro_rules! wire_struct {
    ($name:ident { $($field:ident),* $(,)? }) => {
        impl $crate::codec::Wire for $name {
            fn put(&self, out: &mut Vec<u8>) {
                let $name { $($field),* } = self;
                $crate::codec::put_group(out, |_out| { $($field.put(_out);)* });
            }
            fn get(input: &mut $crate::codec::Reader<'_>) -> Result<Self, $crate::codec::DecodeError> {
                let mut _group = $crate::codec::get_group(input, stringify!($name))?;
                $(let $field = $crate::codec::get_field(&mut _group)?;)*
                Ok($name { $($field),* })
            }
        }
    };
}
pub(crate) use wire_struct;

/// An enum as `u16` tag and a group of the variant's fields. Tags are never reused.
macro_rules! wire_enum {
    ($name:ident { $($tag:literal = $variant:ident $({ $($field:ident),* $(,)? })? $(( $($item:ident),* ))? ),* $(,)? }) => {
        impl $crate::codec::Wire for $name {
            fn put(&self, out: &mut Vec<u8>) {
                match self {
                    $($name::$variant $({ $($field),* })? $(( $($item),* ))? => {
                        <u16 as $crate::codec::Wire>::put(&$tag, out);
                        $crate::codec::put_group(out, |_out| {
                            $($($field.put(_out);)*)?
                            $($($item.put(_out);)*)?
                        });
                    })*
                }
            }
            fn get(input: &mut $crate::codec::Reader<'_>) -> Result<Self, $crate::codec::DecodeError> {
                let tag = <u16 as $crate::codec::Wire>::get(input)?;
                let mut _group = $crate::codec::get_group(input, stringify!($name))?;
                match tag {
                    $($tag => {
                        $($(let $field = $crate::codec::get_field(&mut _group)?;)*)?
                        $($(let $item = $crate::codec::get_field(&mut _group)?;)*)?
                        Ok($name::$variant $({ $($field),* })? $(( $($item),* ))?)
                    })*
                    other => Err($crate::codec::DecodeError::Tag { of: stringify!($name), tag: u32::from(other) }),
                }
            }
        }
    };
}
pub(crate) use wire_enum;
