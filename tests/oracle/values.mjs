// Values of many types, as SQL literals: those that compare, print or parse in more than one way.

const quote = (text) => `'${text.replaceAll("'", "''")}'`

const texts = ['', ' ', 'a', 'A', 'ab', 'abc', 'ABC', 'Abc', 'äbc', 'Äbc', 'zebra', 'Zebra', 'a\nb', 'b\r\nc', 'x\ty', '50%', 'a_c', 'a%c',
  'back\\slash', '\\', "it's", '"quoted"', '\\"both\\"', 'straße', 'strasse', 'é', 'e\u0301', 'ünïcödé', '🎉 party', '日本語', '\u2028', 'NULL',
  'null', '{}', '$1', '--', '\u0001', 'a  ', 'abc  ', '10', '9', '-1', 'ß', 'ſ', 'İ', 'i']
const short = texts.filter((text) => [...text].length <= 6)

// A text that is stored out of line, and one that is compressed.
const long = Array.from({ length: 6 }, (_, i) =>
  `(select string_agg(md5((i * ${i + 1})::text), '' order by i) from generate_series(1, ${90 + 60 * i}) i)`)
const compressible = ["repeat('wide ', 2000)", "repeat('ä', 3000)"]

const quoted = (list) => list.map(quote)
const ints = ['-3', '-1', '0', '1', '2', '3', '5', '7', '10', '42', '100']

/**
 * Kinds of columns: { type, base, kind, literals, extra }. `base`: what a domain is over. `kind` says which operators predicates may use; `literals` what
 * predicates and writers take; `extra` what only writers take.
 */
export const columnTypes = [
  { type: 'int4', kind: 'int', literals: [...ints, '2147483647', '-2147483648'] },
  { type: 'int2', kind: 'int', literals: [...ints, '32767'] },
  { type: 'int8', kind: 'int', literals: [...ints, '9007199254740993', '-9223372036854775808'] },
  { type: 'numeric', kind: 'numeric', literals: [...ints, '0.0', '1.0', '1.00', '-1.5', '12345678901234567890.123456789', "'NaN'", "'Infinity'", "'-Infinity'"] },
  { type: 'numeric(8,2)', kind: 'numeric', literals: [...ints, '0.01', '-999999.99', "'NaN'"] },
  { type: 'float8', kind: 'float', literals: [...ints, '0.1', '1.5', "'-0'", "'NaN'", "'Infinity'", "'-Infinity'", '1e200', '1e-300'] },
  { type: 'float4', kind: 'float', literals: [...ints, '1.1', '0.5', "'-0'", "'NaN'", "'Infinity'", "'-Infinity'", '1e-30'] },
  { type: 'text', kind: 'text', literals: quoted(texts), extra: [...long, ...compressible] },
  { type: 'text collate "und-x-icu"', kind: 'text', literals: quoted(texts), extra: long },
  { type: 'text collate "de-x-icu"', kind: 'text', literals: quoted(texts) },
  { type: 'text collate loose', kind: 'loose', literals: quoted(texts) },
  { type: 'varchar(30)', kind: 'text', literals: quoted(texts) },
  { type: 'char(6)', kind: 'char', literals: quoted(short) },
  { type: 'bool', kind: 'bool', literals: ['true', 'false'] },
  { type: 'date', kind: 'date', literals: quoted(['2024-02-29', '2024-03-01', '2023-12-31', '1999-01-01', 'infinity', '-infinity', '0044-03-15 BC']) },
  { type: 'timestamp', kind: 'timestamp', literals: quoted(['2024-02-29 12:00', '2024-03-01', '2024-03-01 00:00:00.000001', 'infinity', '1970-01-01', '0044-03-15 BC']) },
  { type: 'timestamptz', kind: 'timestamptz', literals: quoted(['2024-02-29 12:00+00', '2024-03-01 00:00+14', '2024-03-01', '-infinity', '1970-01-01 00:00+00']) },
  { type: 'interval', kind: 'interval', literals: quoted(['1 day', '24 hours', '1 mon', '30 days', '-1 day', '0', '1 year 2 mons 3 days 04:05:06.789']) },
  { type: 'time', kind: 'time', literals: quoted(['00:00', '12:34:56.789', '24:00:00']) },
  { type: 'mood', kind: 'enum', literals: quoted(['sad', 'ok', 'happy', "it's"]) },
  { type: 'jsonb', kind: 'jsonb', literals: quoted(['{"a": 1, "b": "x"}', '{"a": 1.0}', '{"a": [1, 2, {"b": null}]}', '[]', '[1, "a"]', '"a"', 'null', '{"b": {"c": true}, "ü": "\\n"}', '7', '{}']) },
  { type: 'int4[]', kind: 'array', element: 'int4', literals: quoted(['{}', '{1}', '{1,2,3}', '{NULL,1}', '{{1,2},{3,4}}', '[0:1]={5,6}', '{3,2,1}']) },
  { type: 'text[]', kind: 'array', element: 'text', literals: quoted(['{}', '{a}', '{a,b}', '{NULL,"NULL",""}', '{"a b","\\"q\\"",ü}', '{b,a}']) },
  { type: 'bytea', kind: 'bytea', literals: quoted(['\\x', '\\x00', '\\x0001feff', '\\x61']) },
  { type: 'uuid', kind: 'uuid', literals: quoted(['a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', '00000000-0000-0000-0000-000000000000', 'ffffffff-ffff-ffff-ffff-ffffffffffff', 'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A12']) },
  { type: 'small', base: 'int4', kind: 'int', literals: ['0', '1', '2', '3', '5', '50', '99'] },
  { type: 'label', base: 'text', kind: 'text', literals: quoted(texts.filter((text) => text !== '')) },
  { type: 'pair', kind: 'composite', literals: quoted(['(1,a)', '(1,"a b")', '(,)', '(2,"it\'s ""so""")']) },
  { type: 'bit(4)', kind: 'plain', literals: quoted(['1010', '0000', '1111']) },
  { type: 'varbit', kind: 'plain', literals: quoted(['', '1', '101']) },
  { type: 'inet', kind: 'plain', literals: quoted(['192.168.0.1/24', '::1', '10.0.0.0/8']) },
  { type: 'timetz', kind: 'plain', literals: quoted(['12:00:00.5+05:30', '06:30:00.5+00', '00:00+00']) },
  { type: 'money', kind: 'plain', literals: quoted(['12.34', '-1000.5', '0']) },
  { type: 'name', kind: 'plain', literals: quoted(['a_name', 'A', 'ü']) },
  { type: '"char"', kind: 'plain', literals: quoted(['a', 'b', '\\']) },
  { type: 'oid', kind: 'plain', literals: quoted(['0', '4294967295', '7']) },
  { type: 'tsvector', kind: 'plain', literals: quoted(["'a':1A 'fat':2B,4C 'it''s':3", '', "'a'"]) },
  { type: 'int4multirange', kind: 'plain', literals: quoted(['{[1,3),[5,7)}', '{}', '{(,1)}']) },
  { type: 'pair[]', kind: 'plain', literals: quoted(['{"(1,\\"x y\\")"}', '{}', '{NULL,"(,)"}']) },
  { type: 'mood[]', kind: 'plain', literals: quoted(['{happy,"it\'s"}', '{}', '{sad}']) },
  { type: 'json', kind: 'none', literals: quoted(['{"b" :  1, "a": [1,2,{"ü": null}]}', 'null', '"x\\n"']) },
  { type: 'xml', kind: 'none', literals: quoted(['<a b="1">x &amp; y</a>', '<b/>']) },
  { type: 'point', kind: 'none', literals: quoted(['(1.5,-2)', '(-0,NaN)']) },
  { type: 'int4range', kind: 'range', literals: quoted(['[1,10)', 'empty', '(,5]', '[3,)', '[5,6)']) },
]

/** SQL that makes the types which are not built in. */
export const ownTypes = `
  create collation loose (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
  create type mood as enum ('sad', 'ok', 'happy', 'it''s');
  create domain small as int check (value between 0 and 99);
  create domain label as varchar(40) collate "und-x-icu" check (value <> '');
  create type pair as (a int, b text);`

/** A value for a column, as SQL; null now and then. */
export function anyValue(random, { type, literals, extra = [], required }) {
  if (!required && random.chance(0.15)) return `null::${type.replace(/ collate .*/, '')}`
  const value = extra.length > 0 && random.chance(0.12) ? random.pick(extra) : random.pick(literals)
  return `${/^-/.test(value) ? quote(value) : value}::${type.replace(/ collate .*/, '')}`
}

/** The type that constants beside a column are cast to; a `where` has no casts to domains with constraints. */
export const castOf = ({ type, base }) => base ?? type.replace(/ collate .*/, '')

/** A value that predicates take. */
export const literalOf = (random, { literals }) => random.pick(literals)

export const allTexts = texts
