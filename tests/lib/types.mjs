// Every built-in type that a column can have, with values that print in more than one way.

/** [type, literals, what electric-schema says beside the type]. The type may have modifiers. */
export const types = [
  ['int2', ['-32768', '32767']],
  ['int4', ['-2147483648', '0']],
  ['int8', ['9007199254740993', '-9223372036854775808']],
  ['float4', ['1.1', 'NaN', '-Infinity', '1e-30']],
  ['float8', ['0.1', '3.141592653589793', 'Infinity', '-0', '1e+300', '5e-324']],
  ['numeric', ['12345678901234567890.123456789', 'NaN', '0.10', 'Infinity']],
  ['numeric(8,2)', ['1.5', '-999999.99'], { type: 'numeric', precision: 8, scale: 2 }],
  ['numeric(5)', ['12345'], { type: 'numeric', precision: 5, scale: 0 }],
  ['numeric(3,-2)', ['12345'], { type: 'numeric', precision: 3, scale: -2 }],
  ['numeric(2,5)', ['0.00012'], { type: 'numeric', precision: 2, scale: 5 }],
  ['money', ['12.34', '-1000.5']],
  ['bool', ['true', 'false']],
  ['text', ['', ' spaces ', 'tab\tnewline\n', 'ünïcödé 🎉 \u2028', '"quoted" \\back/slash', '\u0001\u001f\u007f', 'NULL']],
  ['varchar(20)', ['abc  '], { type: 'varchar', max_length: 20 }],
  ['varchar', ['x']],
  ['char(5)', ['ab', ''], { type: 'bpchar', length: 5 }],
  ['char', ['x', ''], { type: 'bpchar', length: 1 }],
  ['bpchar', ['ab  ', '']],
  ['"char"', ['a'], { type: 'char' }],
  ['name', ['a_name']],
  ['bytea', ['\\x0001feff', '\\x']],
  ['uuid', ['A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11']],
  ['date', ['2024-02-29', 'infinity', '4713-01-01 BC', '12345-06-07']],
  ['time', ['23:59:59.999999', '24:00:00']],
  ['time(3)', ['01:02:03.4567'], { type: 'time', precision: 3 }],
  ['time(0)', ['01:02:03.5'], { type: 'time', type_mod: 0 }],
  ['timetz', ['12:00:00.5+05:30']],
  ['timetz(2)', ['12:00:00.555-01'], { type: 'timetz', precision: 2 }],
  ['timestamp', ['2024-01-01 00:00:00', '-infinity', '0044-03-15 12:00:00 BC', '2024-06-07 08:09:10.123456']],
  ['timestamp(2)', ['2024-06-07 08:09:10.126'], { type: 'timestamp', precision: 2 }],
  ['timestamp(0)', ['2024-06-07 08:09:10.6'], { type: 'timestamp', type_mod: 0 }],
  ['timestamptz', ['2024-01-01 00:00:00+00', '2024-06-07 08:09:10.1+14']],
  ['timestamptz(6)', ['2024-06-07 08:09:10.126'], { type: 'timestamptz', precision: 6 }],
  ['interval', ['1 year 2 mons 3 days 04:05:06.789', '-1 day', '0', '1.5 months']],
  ['interval day to second(2)', ['1 day 00:00:01.239'], { type: 'interval', fields: 'DAY TO SECOND', precision: 2 }],
  ['interval year', ['3 years'], { type: 'interval', fields: 'YEAR' }],
  ['interval(3)', ['1 day 00:00:01.23456'], { type: 'interval', precision: 3 }],
  ['interval second(1)', ['1.26 seconds'], { type: 'interval', fields: 'SECOND', precision: 1 }],
  ['interval month', ['5 months'], { type: 'interval', fields: 'MONTH' }],
  ['interval day', ['3 days'], { type: 'interval', fields: 'DAY' }],
  ['interval hour', ['7 hours'], { type: 'interval', fields: 'HOUR' }],
  ['interval minute', ['90 minutes'], { type: 'interval', fields: 'MINUTE' }],
  ['interval second', ['61.5 seconds'], { type: 'interval', fields: 'SECOND' }],
  ['interval year to month', ['1-2'], { type: 'interval', fields: 'YEAR TO MONTH' }],
  ['interval day to hour', ['1 day 2 hours'], { type: 'interval', fields: 'DAY TO HOUR' }],
  ['interval day to minute', ['1 day 02:03'], { type: 'interval', fields: 'DAY TO MINUTE' }],
  ['interval hour to minute', ['02:03'], { type: 'interval', fields: 'HOUR TO MINUTE' }],
  ['interval hour to second', ['02:03:04.5'], { type: 'interval', fields: 'HOUR TO SECOND' }],
  ['interval minute to second', ['03:04.5'], { type: 'interval', fields: 'MINUTE TO SECOND' }],
  ['json', ['{"b" :  1, "a": [1,2,{"ü": null}]}', 'null', '"x"']],
  ['jsonb', ['{"b" :  1, "a": [1,2,{"ü": null}], "a": 2}', '1.10']],
  ['jsonpath', ['$.a[*] ? (@ > 1)']],
  ['xml', ['<a b="1">x &amp; y</a>']],
  ['bit(4)', ['1010'], { type: 'bit', length: 4 }],
  ['varbit(8)', ['101'], { type: 'varbit', length: 8 }],
  ['bit', ['1'], { type: 'bit', length: 1 }],
  ['varbit', ['', '10101'], { type: 'varbit', length: -1 }],
  ['point', ['(1.5,-2)']],
  ['line', ['{1,-1,0.5}']],
  ['lseg', ['[(0,0),(1,1)]']],
  ['box', ['(0,0),(2,2)']],
  ['path', ['((0,0),(1,1))', '[(0,0),(1,1)]']],
  ['polygon', ['((0,0),(1,1),(1,0))']],
  ['circle', ['<(1,2),3>']],
  ['cidr', ['192.168.0.0/16', '2001:db8::/32']],
  ['inet', ['192.168.0.1/24', '::1']],
  ['macaddr', ['08-00-2b-01-02-03']],
  ['macaddr8', ['08:00:2b:01:02:03:04:05']],
  ['tsvector', ["'a':1A 'fat':2B,4C 'it''s':3"]],
  ['tsquery', ["'fat' & ( 'rat' | !'cat' )"]],
  ['int4range', ['[1,10)', 'empty', '(,5]']],
  ['int8range', ['[1,)']],
  ['numrange', ['(1.5,2.50]']],
  ['tsrange', ['[2024-01-01 00:00,2024-02-01 00:00)']],
  ['tstzrange', ['[2024-01-01 00:00+02,)']],
  ['daterange', ['[2024-01-01,2024-01-31]']],
  ['int4multirange', ['{[1,3),[5,7)}']],
  ['nummultirange', ['{}']],
  ['datemultirange', ['{[2024-01-01,2024-01-03)}']],
  ['int8multirange', ['{[1,3)}']],
  ['tsmultirange', ['{[2024-01-01 00:00,2024-01-02 00:00)}']],
  ['tstzmultirange', ['{[2024-01-01 00:00+02,2024-01-02 00:00+02)}']],
  ['oid', ['4294967295']],
  ['regclass', ['pg_class', '-']],
  ['regtype', ['integer']],
  ['regproc', ['now']],
  ['regrole', ['postgres']],
  ['regnamespace', ['pg_catalog']],
  ['regprocedure', ['lower(text)']],
  ['regoper', ['||/']],
  ['regoperator', ['+(integer,integer)']],
  ['regconfig', ['english']],
  ['regdictionary', ['simple']],
  ['regcollation', ['"C"']],
  ['aclitem', ['postgres=r/postgres']],
  ['pg_lsn', ['16/B374D848']],
  ['tid', ['(1,2)']],
  ['xid', ['42']],
  ['xid8', ['18446744073709551615']],
  ['cid', ['7']],
  ['pg_snapshot', ['10:20:10,14,15']],
  ['txid_snapshot', ['10:20:10,14,15']],
  ['refcursor', ['a cursor']],
  ['int4[]', ['{1,NULL,-3}', '{}', '{{1,2},{3,4}}', '[0:1]={5,6}'], { type: 'int4', dims: 1 }],
  ['text[]', ['{"a b",NULL,"NULL","","\\"q\\"","c,d",ü}'], { type: 'text', dims: 1 }],
  ['bool[]', ['{t,f,NULL}'], { type: 'bool', dims: 1 }],
  ['timestamptz[][]', ['{{"2024-01-01 00:00:00+00"}}'], { type: 'timestamptz', dims: 2 }],
  ['varchar(9)[]', ['{abc}'], { type: 'varchar', max_length: 9, dims: 1 }],
  ['varchar(123)[][]', ['{{a,b}}'], { type: 'varchar', max_length: 123, dims: 2 }],
  ['numeric(8,2)[]', ['{1.5,NULL}'], { type: 'numeric', precision: 8, scale: 2, dims: 1 }],
  ['bytea[]', ['{"\\\\x00ff"}'], { type: 'bytea', dims: 1 }],
  ['char(3)[]', ['{a,bc}'], { type: 'bpchar', length: 3, dims: 1 }],
  ['uuid[]', ['{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11}'], { type: 'uuid', dims: 1 }],
  ['point[]', ['{"(1,2)","(3,4.5)"}'], { type: 'point', dims: 1 }],
  ['box[]', ['{(0,0),(2,2);(1,1),(3,3)}'], { type: 'box', dims: 1 }],
  ['jsonb[]', ['{"{\\"a\\": 1}"}'], { type: 'jsonb', dims: 1 }],
  ['interval[]', ['{"1 day"}'], { type: 'interval', dims: 1 }],
  ['int2vector', ['1 2 3']],
  ['oidvector', ['1 2']],
  ['mood', ['happy', "it's"]],
  ['mood[]', ['{happy,"it\'s"}'], { type: 'mood', dims: 1 }],
  ['positive', ['5']],
  ['positive[]', ['{5,6}'], { type: 'positive', dims: 1 }],
  ['short', ['abc']],
  ['twice', ['(3,x)']],
  ['moods', ['{sad}']],
  ['words', ['{a,b}'], { type: 'words' }],
  ['pair', ['(1,"a b")', '(,)', '("1","it""s")']],
  ['pair[]', ['{"(1,\\"x y\\")"}'], { type: 'pair', dims: 1 }],
  ['floats', ['[1.5,2.5)']],
]

/** SQL that makes the types of a schema's own. */
export const ownTypes = `
  create type mood as enum ('sad', 'happy', 'it''s');
  create domain positive as int check (value > 0);
  create domain words as text[];
  create domain short as varchar(5);
  create domain moods as mood[];
  create type pair as (a int, b text);
  create domain twice as pair;
  create type floats as range (subtype = float8);`

export const columnOf = (index) => `c${index}`

const quote = (text) => `'${text.replaceAll("'", "''")}'`

/** SQL of a table of that name with a column per type, and a key. */
export function typesTable(name) {
  return `create table ${name} (id int primary key, ${types.map(([type], i) => `${columnOf(i)} ${type}`).join(', ')});`
}

/** How many rows it takes to have each value once, and one of nulls. */
export const rowCount = Math.max(...types.map(([, values]) => values.length)) + 1

/** SQL that inserts those rows with ids from `first` on; the first row is the one of nulls. */
export function typesRows(name, first) {
  const rows = Array.from({ length: rowCount }, (_, row) =>
    `(${first + row}, ${types.map(([type, values]) => (row ? `${quote(values[(row - 1) % values.length])}::${type}` : 'null')).join(', ')})`)
  return `insert into ${name} values ${rows.join(',\n')};`
}

/** The element of electric-schema for a type. */
export const schemaOf = ([type, , schema]) => schema ?? { type: type.replaceAll('"', '') }

/** Settings under which Postgres prints what the wire has. */
export const printing = "set timezone = 'UTC'; set datestyle = 'ISO, DMY'; set intervalstyle = iso_8601; set extra_float_digits = 1; set bytea_output = hex;"

/** The rows with ids of [from, to) as Postgres prints them, over a client of `pg`: arrays of texts and nulls, by id. */
export async function printedRows(client, name, from, to) {
  await client.query(printing)
  const { rows } = await client.query({
    text: `select id, ${types.map((_, i) => columnOf(i)).join(', ')} from ${name} where id >= ${from} and id < ${to} order by id`,
    rowMode: 'array',
    types: { getTypeParser: () => (text) => text },
  })
  return rows.map(([, ...values]) => values)
}

/** A value as the wire may have it: a boolean has two spellings. */
export const asPrinted = ([type], text) => (type === 'bool' && text ? text[0] : text)
