//! Logs and their chunks.

use sqlx::{query, query_as, query_scalar};

use crate::{
    database::{Conn, DbError},
    domain::stream::{Append, Found, Key, Owner, Piece, StoredChunk},
};

/// What one chunk holds at most when rows are joined.
const JOINED_BYTES: usize = 64 << 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Command,
    Session,
    Project,
}

impl Kind {
    fn text(self) -> &'static str {
        match self {
            Self::Command => "command",
            Self::Session => "session",
            Self::Project => "project",
        }
    }
}

/// A batch's append that was accepted.
#[derive(sqlx::FromRow)]
pub struct StoredAppend {
    pub key: Key,
    /// Last number of the session's log before these events.
    pub parent_base: Option<i64>,
}

/// Where a command's log stands, for who follows the command.
#[derive(sqlx::FromRow)]
pub struct Tail {
    pub last_n: i64,
    pub out_bytes: i64,
    pub err_bytes: i64,
    pub ended: bool,
}

pub async fn insert(c: &mut Conn, project: &str, kind: Kind, name: &str, parent: Option<Key>) -> Result<Key, DbError> {
    let sql = "insert into stream (project_id, kind, name, parent) values ($1, $2, $3, $4) returning key";
    c.scalar(query_scalar(sql).bind(project).bind(kind.text()).bind(name).bind(parent)).await
}

pub async fn find(c: &mut Conn, project: &str, kind: Kind, name: &str) -> Result<Option<Found>, DbError> {
    let sql = "select key, last_n, trimmed_to, ended from stream
               where project_id = $1 and kind = $2 and name = $3";
    let row: Option<(i64, i64, i64, bool)> =
        c.optional(query_as(sql).bind(project).bind(kind.text()).bind(name)).await?;
    Ok(row.map(|(key, last_n, trimmed_to, ended)| Found {
        owner: Owner::new(key, name),
        project: project.to_owned(),
        last_n,
        trimmed_to,
        ended,
    }))
}

/// A log that belongs to no project, by its key.
pub async fn find_by_key(c: &mut Conn, key: Key) -> Result<Option<Found>, DbError> {
    let sql = "select name, last_n, trimmed_to, ended from stream where key = $1";
    let row: Option<(String, i64, i64, bool)> = c.optional(query_as(sql).bind(key)).await?;
    Ok(row.map(|(name, last_n, trimmed_to, ended)| Found {
        owner: Owner::new(key, &name),
        project: String::new(),
        last_n,
        trimmed_to,
        ended,
    }))
}

/// Appends one event whatever the fence; `None` when the log has ended.
pub async fn append_one(c: &mut Conn, key: Key, body: &[u8], last: bool) -> Result<Option<i64>, DbError> {
    let sql = "with grown as (
                   update stream set last_n = last_n + 1, ended = $3 where key = $1 and not ended
                   returning last_n, out_bytes, err_bytes
               )
               insert into chunk (stream, from_n, to_n, out_end, err_end, data)
               select $1, last_n, last_n, out_bytes, err_bytes, $2 from grown
               returning to_n";
    c.scalar_optional(query_scalar(sql).bind(key).bind(body).bind(last)).await
}

/// Numbers `count` events of a command's log, which end at `ref_to` there, in its session's log.
pub async fn refer(
    c: &mut Conn,
    parent: Key,
    command: Key,
    ref_from: i64,
    ref_to: i64,
) -> Result<Option<i64>, DbError> {
    let sql = "with grown as (
                   update stream set last_n = last_n + $4 - $3 + 1 where key = $1 and not ended returning last_n
               )
               insert into chunk (stream, from_n, to_n, ref, ref_from)
               select $1, last_n - ($4 - $3), last_n, $2, $3 from grown
               returning from_n";
    c.scalar_optional(query_scalar(sql).bind(parent).bind(command).bind(ref_from).bind(ref_to)).await
}

/// Appends output of several commands at once. A log is written only under its newest
/// fence and from the number that the writer knows; those that were not are missing
/// from the answer. References in session logs come along.
pub async fn append_batch(c: &mut Conn, appends: &[&Append]) -> Result<Vec<StoredAppend>, DbError> {
    if let [append] = appends
        && append.parent.is_none()
        && let [piece] = append.pieces.as_slice()
    {
        return append_piece(c, append, piece).await;
    }
    let sql = "with head as (
                   select * from unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[])
                       as h (key, fence, base, upto, out_end, err_end, parent)
               ), grown as (
                   update stream s
                   set last_n = h.upto, out_bytes = h.out_end, err_bytes = h.err_end
                   from head h
                   where s.key = h.key and s.fence = h.fence and s.last_n = h.base and not s.ended
                   returning s.key, h.parent, h.base, h.upto
               ), piece as (
                   select * from unnest($8::bigint[], $9::bigint[], $10::bigint[], $11::bigint[], $12::bigint[], $13::bytea[])
                       as p (stream, from_n, to_n, out_end, err_end, data)
               ), written as (
                   insert into chunk (stream, from_n, to_n, out_end, err_end, data)
                   select p.stream, p.from_n, p.to_n, p.out_end, p.err_end, p.data
                   from piece p join grown g on g.key = p.stream
               ), share as (
                   select key, parent, base, upto,
                          coalesce(sum(upto - base) over (partition by parent order by key
                              rows between unbounded preceding and 1 preceding), 0)::bigint as before,
                          (sum(upto - base) over (partition by parent))::bigint as total
                   from grown where parent is not null
               ), parent as (
                   update stream s set last_n = s.last_n + t.total
                   from (select distinct parent, total from share) t
                   where s.key = t.parent and not s.ended
                   returning s.key, s.last_n - t.total as base
               ), referred as (
                   insert into chunk (stream, from_n, to_n, ref, ref_from)
                   select r.key, r.base + h.before + (p.from_n - h.base), r.base + h.before + (p.to_n - h.base), p.stream, p.from_n
                   from share h join parent r on r.key = h.parent join piece p on p.stream = h.key
               )
               select g.key, (select r.base + h.before from share h join parent r on r.key = h.parent where h.key = g.key) as parent_base
               from grown g";
    let heads = Heads::of(appends);
    let pieces = Pieces::of(appends);
    let query = query_as(sql)
        .bind(heads.key)
        .bind(heads.fence)
        .bind(heads.base)
        .bind(heads.upto)
        .bind(heads.out_end)
        .bind(heads.err_end)
        .bind(heads.parent)
        .bind(pieces.stream)
        .bind(pieces.from)
        .bind(pieces.to)
        .bind(pieces.out_end)
        .bind(pieces.err_end)
        .bind(pieces.data);
    c.all(query).await
}

/// What a quiet command says: one piece, in no session. A third less work than the general statement,
/// and somebody waits for it.
async fn append_piece(c: &mut Conn, append: &Append, piece: &Piece) -> Result<Vec<StoredAppend>, DbError> {
    let sql = "with grown as (
                   update stream set last_n = $4, out_bytes = $5, err_bytes = $6
                   where key = $1 and fence = $2 and last_n = $3 and not ended
                   returning key
               )
               insert into chunk (stream, from_n, to_n, out_end, err_end, data)
               select key, $3 + 1, $4, $5, $6, $7 from grown
               returning stream as key, null::bigint as parent_base";
    let query = query_as(sql)
        .bind(append.owner.key)
        .bind(append.fence)
        .bind(append.base)
        .bind(append.base + piece.events)
        .bind(append.out_base + piece.out_bytes)
        .bind(append.err_base + piece.err_bytes)
        .bind(&piece.data[..]);
    c.all(query).await
}

#[derive(Default)]
struct Heads {
    key: Vec<i64>,
    fence: Vec<i64>,
    base: Vec<i64>,
    upto: Vec<i64>,
    out_end: Vec<i64>,
    err_end: Vec<i64>,
    parent: Vec<Option<i64>>,
}

impl Heads {
    fn of(appends: &[&Append]) -> Self {
        let mut heads = Self::default();
        for a in appends {
            heads.key.push(a.owner.key);
            heads.fence.push(a.fence);
            heads.base.push(a.base);
            heads.upto.push(a.base + a.pieces.iter().map(|p| p.events).sum::<i64>());
            heads.out_end.push(a.out_base + a.pieces.iter().map(|p| p.out_bytes).sum::<i64>());
            heads.err_end.push(a.err_base + a.pieces.iter().map(|p| p.err_bytes).sum::<i64>());
            heads.parent.push(a.parent.as_ref().map(|parent| parent.key));
        }
        heads
    }
}

#[derive(Default)]
struct Pieces<'a> {
    stream: Vec<i64>,
    from: Vec<i64>,
    to: Vec<i64>,
    out_end: Vec<i64>,
    err_end: Vec<i64>,
    data: Vec<&'a [u8]>,
}

impl<'a> Pieces<'a> {
    fn of(appends: &[&'a Append]) -> Self {
        let mut pieces = Self::default();
        for a in appends {
            let (mut n, mut out, mut err) = (a.base, a.out_base, a.err_base);
            for piece in &a.pieces {
                pieces.stream.push(a.owner.key);
                pieces.from.push(n + 1);
                (n, out, err) = (n + piece.events, out + piece.out_bytes, err + piece.err_bytes);
                pieces.to.push(n);
                pieces.out_end.push(out);
                pieces.err_end.push(err);
                pieces.data.push(&piece.data);
            }
        }
        pieces
    }
}

/// Takes the log over: from now on only `fence` may append. Says where it stands.
pub async fn take_over(c: &mut Conn, key: Key, fence: i64) -> Result<Option<Tail>, DbError> {
    let sql = "update stream set fence = $2 where key = $1 and fence <= $2
               returning last_n, out_bytes, err_bytes, ended";
    c.optional(query_as(sql).bind(key).bind(fence)).await
}

/// What comes after event `after`, references resolved: so many rows and about so many bytes at most.
/// Rows that follow one another are joined, so that a log that was written line by line is framed and
/// sent as few chunks.
pub async fn read(c: &mut Conn, key: Key, after: i64, rows: i64, bytes: i64) -> Result<Vec<StoredChunk>, DbError> {
    let sql = "select from_n, to_n, data, command
               from (
                   select chunk.from_n, chunk.to_n, coalesce(chunk.data, origin.data, ''::bytea) as data,
                          stream.name as command,
                          sum(octet_length(coalesce(chunk.data, origin.data)))
                              over (order by chunk.to_n rows between unbounded preceding and 1 preceding) as before
                   from chunk
                   left join chunk origin
                       on chunk.ref is not null and origin.stream = chunk.ref
                       and origin.to_n = chunk.ref_from + (chunk.to_n - chunk.from_n)
                   left join stream on stream.key = chunk.ref
                   where chunk.stream = $1 and chunk.to_n > $2
                   order by chunk.to_n
                   limit $3
               ) page
               where coalesce(before, 0) < $4
               order by to_n";
    let found: Vec<StoredChunk> = c.all(query_as(sql).bind(key).bind(after).bind(rows).bind(bytes)).await?;
    Ok(join(found))
}

/// Joins neighbours of the same origin, up to the size of a chunk.
fn join(rows: Vec<StoredChunk>) -> Vec<StoredChunk> {
    let mut joined: Vec<StoredChunk> = Vec::new();
    for row in rows {
        match joined.last_mut() {
            Some(last)
                if last.command == row.command
                    && last.to + 1 == row.from
                    && last.data.len() + row.data.len() <= JOINED_BYTES =>
            {
                last.to = row.to;
                last.data.extend_from_slice(&row.data);
            }
            _ => joined.push(row),
        }
    }
    joined
}

/// Number of the event with which the log ended.
pub async fn ended_at(c: &mut Conn, key: Key) -> Result<Option<i64>, DbError> {
    c.scalar_optional(query_scalar("select last_n from stream where key = $1 and ended").bind(key)).await
}

pub async fn last_numbers(c: &mut Conn, keys: &[Key]) -> Result<Vec<(Key, i64)>, DbError> {
    c.all(query_as("select key, last_n from stream where key = any($1)").bind(keys)).await
}

pub async fn notify(c: &mut Conn, channel: &str, payload: &str) -> Result<(), DbError> {
    c.execute(query("select pg_notify($1, $2)").bind(channel).bind(payload)).await.map(drop)
}

/// Removes chunks stored before `cutoff`, never a log's newest, and remembers up to where.
pub async fn trim(c: &mut Conn, cutoff: chrono::DateTime<chrono::Utc>, limit: i64) -> Result<u64, DbError> {
    let sql = "with old as (
                   select chunk.stream, chunk.to_n from chunk join stream on stream.key = chunk.stream
                   where chunk.created_at < $1 and chunk.to_n < stream.last_n
                   order by chunk.created_at
                   limit $2
               ), gone as (
                   delete from chunk using old where chunk.stream = old.stream and chunk.to_n = old.to_n
                   returning chunk.stream, chunk.to_n
               ), upto as (
                   select stream, max(to_n) as to_n from gone group by stream
               )
               update stream set trimmed_to = greatest(trimmed_to, upto.to_n) from upto where stream.key = upto.stream";
    c.execute(query(sql).bind(cutoff).bind(limit)).await
}

/// Removes chunks of a project's logs, so many at once. Answers how many there were.
pub async fn delete_of_project(c: &mut Conn, project: &str, limit: i64) -> Result<u64, DbError> {
    let sql = "delete from chunk
               where (stream, to_n) in (
                   select chunk.stream, chunk.to_n from chunk join stream on stream.key = chunk.stream
                   where stream.project_id = $1 limit $2)";
    c.execute(query(sql).bind(project).bind(limit)).await
}

/// Bytes of stdout and of stderr up to the end of the newest chunk that ends at or before `n`,
/// and where that chunk ends.
pub async fn bytes_before(c: &mut Conn, key: Key, n: i64) -> Result<Option<(i64, i64, i64)>, DbError> {
    let sql = "select to_n, out_end, err_end from chunk where stream = $1 and to_n <= $2 order by to_n desc limit 1";
    c.optional(query_as(sql).bind(key).bind(n)).await
}

/// End of the last chunk that lies wholly before byte `offset` of the outputs asked for.
pub async fn skip_to_byte(
    c: &mut Conn,
    key: Key,
    offset: i64,
    stdout: bool,
    stderr: bool,
) -> Result<Option<(i64, i64, i64)>, DbError> {
    let sql = "select to_n, out_end, err_end from chunk
               where stream = $1
               and (case when $3 then out_end else 0 end) + (case when $4 then err_end else 0 end) <= $2
               order by to_n desc limit 1";
    c.optional(query_as(sql).bind(key).bind(offset).bind(stdout).bind(stderr)).await
}
