//! The trigger function: what Postgres says about a row change, in safe terms.

use pgrx::pg_guard;
use pgrx::pg_sys::{self, Datum};

use super::relation::Opened;
use crate::capture;
use crate::error::Error;
use crate::record::{self, Kind, SKIPPED_HEADER_BYTES, Tid};

/// Name of the trigger that captures rows.
pub const ROW_TRIGGER: &str = "shapefeed_capture";
/// Name of the trigger that captures TRUNCATE.
pub const TRUNCATE_TRIGGER: &str = "shapefeed_truncate";

/// One firing of the trigger.
pub struct Change {
    relation: Opened,
    kind: Kind,
    old: pg_sys::HeapTuple,
    new: pg_sys::HeapTuple,
}

/// `select shapefeed.capture()` as a trigger. Its symbol is named in sql/functions.
#[unsafe(no_mangle)]
#[pg_guard]
pub unsafe extern "C-unwind" fn shapefeed_capture(fcinfo: pg_sys::FunctionCallInfo) -> Datum {
    // SAFETY: Postgres passes its call info; its context is a TriggerData when it says so.
    match unsafe { change_of(fcinfo) } {
        Call::Change(change) => capture::take(&change),
        // One that was renamed captures no more, which ends the table's epoch; and of a second one each change would be
        // in the log twice.
        Call::OtherTrigger => {}
        Call::NoTrigger => Error::Sql(
            pgrx::PgSqlErrorCode::ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED,
            "shapefeed.capture() was not called as a trigger of a tracked table".into(),
            "Call shapefeed.track() with the table's name.",
        )
        .raise(),
    }
    Datum::null()
}

/// Version record of the function, as fmgr asks for it.
#[unsafe(no_mangle)]
pub extern "C" fn pg_finfo_shapefeed_capture() -> &'static pg_sys::Pg_finfo_record {
    const V1: pg_sys::Pg_finfo_record = pg_sys::Pg_finfo_record { api_version: 1 };
    &V1
}

/// As what the function is called.
enum Call {
    /// As our trigger.
    Change(Change),
    /// As one that has another name.
    OtherTrigger,
    /// As nothing that it is made for.
    NoTrigger,
}

unsafe fn change_of(fcinfo: pg_sys::FunctionCallInfo) -> Call {
    // SAFETY: the node tag tells that the context is a TriggerData; its parts live while the function runs. AFTER ROW
    // triggers get the stored versions, with their TIDs.
    unsafe {
        let data = (*fcinfo).context.cast::<pg_sys::TriggerData>();
        if data.is_null() || (*data).type_ != pg_sys::NodeTag::T_TriggerData {
            return Call::NoTrigger;
        }
        let event = (*data).tg_event;
        if event & pg_sys::TRIGGER_EVENT_TIMINGMASK != pg_sys::TRIGGER_EVENT_AFTER {
            return Call::NoTrigger;
        }
        let row = event & pg_sys::TRIGGER_EVENT_ROW != 0;
        let ours = if row { ROW_TRIGGER } else { TRUNCATE_TRIGGER };
        if !has_name((*data).tg_trigger, ours) {
            return Call::OtherTrigger;
        }
        let none = std::ptr::null_mut();
        let (kind, old, new) = match (event & pg_sys::TRIGGER_EVENT_OPMASK, row) {
            (pg_sys::TRIGGER_EVENT_INSERT, true) => (Kind::Insert, none, (*data).tg_trigtuple),
            (pg_sys::TRIGGER_EVENT_UPDATE, true) => {
                (Kind::Update, (*data).tg_trigtuple, (*data).tg_newtuple)
            }
            (pg_sys::TRIGGER_EVENT_DELETE, true) => (Kind::Delete, (*data).tg_trigtuple, none),
            (pg_sys::TRIGGER_EVENT_TRUNCATE, false) => (Kind::Truncate, none, none),
            _ => return Call::NoTrigger,
        };
        Call::Change(Change {
            relation: Opened::new((*data).tg_relation),
            kind,
            old,
            new,
        })
    }
}

unsafe fn has_name(trigger: *const pg_sys::Trigger, name: &str) -> bool {
    // SAFETY: a trigger's name is a C string, which is read up to the first byte that differs, its end at the latest.
    unsafe {
        let its_name = (*trigger).tgname.cast::<u8>();
        (name.bytes().chain([0]).enumerate()).all(|(i, byte)| *its_name.add(i) == byte)
    }
}

/// Has DROP EXTENSION drop a trigger that was just made. What ALTER TRIGGER … DEPENDS ON EXTENSION does, without its
/// exclusive lock on the extension, which the sequencer would wait for until the transaction ends.
pub fn depend_on_extension(relid: u32, trigger: &str) {
    let Some(extension) = super::relation::our_extension() else {
        return;
    };
    let name = std::ffi::CString::new(trigger).expect("a name of ours");
    // SAFETY: the lock keeps the extension from being dropped; the trigger is found or an error is raised.
    unsafe {
        let lock = pg_sys::AccessShareLock as i32;
        pg_sys::LockDatabaseObject(pg_sys::ExtensionRelationId, extension, 0, lock);
        let address = |class: pg_sys::Oid, object: pg_sys::Oid| pg_sys::ObjectAddress {
            classId: class,
            objectId: object,
            objectSubId: 0,
        };
        let relid = pg_sys::Oid::from_u32(relid);
        let oid = pg_sys::get_trigger_oid(relid, name.as_ptr(), false);
        pg_sys::recordDependencyOn(
            &address(pg_sys::TriggerRelationId, oid),
            &address(pg_sys::ExtensionRelationId, extension),
            pg_sys::DependencyType::DEPENDENCY_AUTO_EXTENSION,
        );
    }
}

impl Change {
    /// The leaf table.
    pub fn relation(&self) -> &Opened {
        &self.relation
    }

    /// What happened.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Appends the images that the record of this change has. If they take more than `limit` bytes, it appends nothing and
    /// says false.
    pub fn put_images(&self, out: &mut Vec<u8>, limit: usize) -> bool {
        // SAFETY: the tuples are whole and of the relation's descriptor.
        unsafe {
            if has_external(self.old) || has_external(self.new) {
                return self.put_with_out_of_line_values(out, limit);
            }
            let desc = (*self.relation.raw()).rd_att;
            if !self.old.is_null() {
                record::put_old(out, tid(self.old), image(whole(self.old, desc)), &[]);
            }
            if !self.new.is_null() {
                record::put_new(out, tid(self.new), image(whole(self.new, desc)));
            }
        }
        true
    }

    /// As [`Change::put_images`], when a value is stored out of line: one that the update left alone stays a pointer,
    /// any other is copied as it is stored. What it will take is known before anything is copied: a row may be larger than any
    /// memory that Postgres gives out.
    unsafe fn put_with_out_of_line_values(&self, out: &mut Vec<u8>, limit: usize) -> bool {
        // SAFETY: as above; the copies live in the trigger's memory context, which is reset after each row.
        unsafe {
            let desc = (*self.relation.raw()).rd_att;
            let (old, new) = (Values::of(self.old, desc), Values::of(self.new, desc));
            let kept = |attribute: usize| match (&old, &new) {
                (Some(old), Some(new)) => {
                    old.out_of_line[attribute].is_some()
                        && old.out_of_line[attribute] == new.out_of_line[attribute]
                }
                _ => false,
            };
            let sides = [(&old, self.old), (&new, self.new)];
            let bytes = sides.map(|(values, tuple)| match values {
                Some(values) => (*tuple).t_len as usize + values.copied_bytes(&kept),
                None => 0,
            });
            if bytes[0] + bytes[1] > limit {
                return false;
            }
            if let Some(old) = &old {
                let (tuple, copied) = old.with_copies(desc, &kept);
                record::put_old(out, tid(self.old), image(tuple), &copied);
            }
            if let Some(new) = &new {
                let (tuple, _) = new.with_copies(desc, &kept);
                record::put_new(out, tid(self.new), image(tuple));
            }
        }
        true
    }
}

/// A value that is stored out of line on disk.
#[derive(Clone, Copy, PartialEq, Eq)]
struct OutOfLine {
    toast_table: u32,
    value_id: u32,
    /// Its size when it is not compressed: what a reader has to do with.
    bytes: usize,
}

/// A tuple taken apart.
struct Values {
    values: Vec<Datum>,
    nulls: Vec<bool>,
    /// Those that are stored out of line.
    out_of_line: Vec<Option<OutOfLine>>,
}

impl Values {
    unsafe fn of(tuple: pg_sys::HeapTuple, desc: pg_sys::TupleDesc) -> Option<Values> {
        if tuple.is_null() {
            return None;
        }
        // SAFETY: the tuple is of this descriptor; the arrays have a place for each attribute.
        unsafe {
            let width = (*desc).natts as usize;
            let (mut values, mut nulls) = (vec![Datum::null(); width], vec![true; width]);
            pg_sys::heap_deform_tuple(tuple, desc, values.as_mut_ptr(), nulls.as_mut_ptr());
            let out_of_line = (0..width)
                .map(|i| {
                    let varlena = pgrx::PgTupleDesc::from_pg_unchecked(desc)
                        .get(i)
                        .is_some_and(|att| att.attlen == -1);
                    if varlena && !nulls[i] {
                        on_disk_value(values[i])
                    } else {
                        None
                    }
                })
                .collect();
            Some(Values {
                values,
                nulls,
                out_of_line,
            })
        }
    }

    /// Bytes of the out-of-line values that are not `kept`.
    fn copied_bytes(&self, kept: &dyn Fn(usize) -> bool) -> usize {
        let values = self.out_of_line.iter().enumerate();
        values
            .filter(|(i, _)| !kept(*i))
            .map(|(_, value)| value.map_or(0, |value| value.bytes))
            .sum()
    }

    /// The tuple with each out-of-line value that is not `kept` copied into it, and which these were.
    unsafe fn with_copies(
        &self,
        desc: pg_sys::TupleDesc,
        kept: &dyn Fn(usize) -> bool,
    ) -> (pg_sys::HeapTuple, Vec<(u16, u32)>) {
        let (mut values, mut nulls, mut copied) =
            (self.values.clone(), self.nulls.clone(), Vec::new());
        for (i, value) in values.iter_mut().enumerate() {
            if let Some(stored) = self.out_of_line[i].filter(|_| !kept(i)) {
                // SAFETY: the value is an on-disk toast pointer; the copy is as compressed as it is stored.
                unsafe {
                    *value = Datum::from(pg_sys::detoast_external_attr(value.cast_mut_ptr()))
                };
                copied.push((i as u16 + 1, stored.value_id));
            }
        }
        // SAFETY: one value and one flag per attribute.
        let tuple =
            unsafe { pg_sys::heap_form_tuple(desc, values.as_mut_ptr(), nulls.as_mut_ptr()) };
        (tuple, copied)
    }
}

/// Where a value is stored, if that is out of line on disk.
unsafe fn on_disk_value(value: Datum) -> Option<OutOfLine> {
    /// `VARTAG_ONDISK`.
    const ON_DISK: u8 = 18;
    // SAFETY: a varlena's first byte tells its form (1 = external, then a tag byte); an on-disk pointer's body is a
    // varatt_external, unaligned: rawsize, extsize/method, value id, toast table, four bytes each.
    unsafe {
        let bytes: *const u8 = value.cast_mut_ptr();
        if *bytes != 1 || *bytes.add(1) != ON_DISK {
            return None;
        }
        let field = |n: usize| bytes.add(2 + 4 * n).cast::<u32>().read_unaligned();
        Some(OutOfLine {
            toast_table: field(3),
            value_id: field(2),
            bytes: field(0) as usize,
        })
    }
}

unsafe fn has_external(tuple: pg_sys::HeapTuple) -> bool {
    // SAFETY: a non-null tuple has its header.
    unsafe {
        !tuple.is_null() && u32::from((*(*tuple).t_data).t_infomask) & pg_sys::HEAP_HASEXTERNAL != 0
    }
}

unsafe fn tid(tuple: pg_sys::HeapTuple) -> Tid {
    // SAFETY: as above.
    let pointer = unsafe { (*tuple).t_self };
    Tid {
        block: (u32::from(pointer.ip_blkid.bi_hi) << 16) | u32::from(pointer.ip_blkid.bi_lo),
        offset: pointer.ip_posid,
    }
}

/// A version with the values of columns that were added after it was stored: until the table is rewritten they are in the
/// catalog alone, and from then on in the rows alone.
unsafe fn whole(tuple: pg_sys::HeapTuple, desc: pg_sys::TupleDesc) -> pg_sys::HeapTuple {
    // SAFETY: the tuple is of this descriptor; a copy lives in the trigger's memory context, which is reset after each row.
    unsafe {
        let stored = u32::from((*(*tuple).t_data).t_infomask2) & pg_sys::HEAP_NATTS_MASK;
        let constraints = (*desc).constr;
        if stored as i32 >= (*desc).natts
            || constraints.is_null()
            || (*constraints).missing.is_null()
        {
            return tuple;
        }
        pg_sys::heap_expand_tuple(tuple, desc)
    }
}

unsafe fn image<'a>(tuple: pg_sys::HeapTuple) -> &'a [u8] {
    // SAFETY: t_len bytes belong to the tuple, header included.
    unsafe {
        let start = (*tuple).t_data.cast::<u8>().add(SKIPPED_HEADER_BYTES);
        std::slice::from_raw_parts(start, (*tuple).t_len as usize - SKIPPED_HEADER_BYTES)
    }
}
