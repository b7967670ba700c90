create extension hstore;
create extension citext;
create schema "Weird Name";
create type mood as enum ('sad', 'ok', 'happy');
create type address as (street text, number int);
create domain positive as int check (value > 0);
create sequence counter start 100 increment 5;

create table customers (
    id bigint generated always as identity primary key,
    name text not null,
    email citext unique,
    mood mood default 'ok',
    home address,
    age positive,
    check (name <> 'nobody'));
create table orders (
    id serial primary key,
    customer_id bigint not null references customers on delete cascade,
    placed timestamptz not null default '2026-11-23 14:02:11.123456+00',
    number int default nextval('counter'));
create table order_items (
    order_id int references orders on delete cascade,
    line smallint,
    product text,
    quantity int,
    price numeric(10, 2),
    total numeric generated always as (quantity * price) stored,
    primary key (order_id, line));
create index order_items_product on order_items (product) where quantity > 1;
create statistics order_stats on product, quantity from order_items;

create table docs (id text primary key, body text, title text, extra bytea);
alter table docs alter body set storage external, alter extra set storage external;
create table full_docs (like docs including all);
alter table full_docs replica identity full;
create table by_index (id text not null, body text, title text, extra bytea, other serial primary key);
alter table by_index alter body set storage external;
create unique index by_index_id on by_index (id);
alter table by_index replica identity using index by_index_id;
create table bag (a int, f float8, t text, n numeric(10, 2));
alter table bag replica identity full;
create table one_text (v text);
alter table one_text replica identity full;
create table inserted_only (n int, t text);
create table moments (at timestamptz, n numeric(6, 2), note text, primary key (at, n));
create table external_key (id text primary key, note text);
alter table external_key alter id set storage external;
create table no_rows (id int primary key, t text);
create table no_columns ();
create unlogged table unlogged_one (id int primary key);

create table parts (id int, day date, v text, primary key (id, day)) partition by range (day);
create table parts_01 partition of parts for values from ('2026-01-01') to ('2026-02-01');
create table parts_02 partition of parts for values from ('2026-02-01') to ('2026-03-01');
create table parts_rest partition of parts default;

create table "Weird Name"."Täble.x" (
    "Key" int primary key, "select" text, "a b" text, "day" date, "_op" text, "É" text);
create table "Weird Name".child (
    id int primary key, parent int references "Weird Name"."Täble.x" ("Key"));

create table types (
    id int primary key, a_bool bool, a_small smallint, a_big bigint, a_real real, a_double float8,
    a_numeric numeric, a_decimal numeric(38, 10), a_char char(5), a_varchar varchar(20),
    a_bytea bytea, a_date date, a_time time, a_timetz timetz, a_ts timestamp, a_tstz timestamptz,
    an_interval interval, a_uuid uuid, a_json json, a_jsonb jsonb, an_inet inet, a_cidr cidr,
    a_mac macaddr, a_bit bit(4), a_varbit varbit, a_point point, a_money money, an_xml xml,
    a_range int4range, a_multi datemultirange, an_array int[], texts text[], an_hstore hstore,
    a_tsvector tsvector, an_enum mood, enums mood[], a_composite address, a_domain positive,
    an_oid oid, a_regclass regclass, a_lsn pg_lsn, an_internal "char", a_name name);
insert into types values
    (1, true, -32768, 9223372036854775807, 3.4028235e38, 5e-324, 1e200, 12345678901234567890.5, 'ab',
     'x', '\x00ff', '2026-11-23', '23:59:59.999999', '12:00:00+05:30', '1999-12-31 23:59:59.5',
     '2026-11-23 14:02:11.1+01', '1 year 2 mons -3 days 04:05:06.7', gen_random_uuid(),
     '{"a" : 1}', '{"a": [1, null]}', '::1/64', '10.0.0.0/8', '08:00:2b:01:02:03', b'1010', b'1',
     '(1.5,2)', 12.34, '<a>b</a>', '[1,5)', '{[2026-01-01,2026-02-01)}', '{{1,2},{3,NULL}}',
     array['a,b', 'c"d', '', null, 'NULL'], 'a=>1, b=>NULL', 'fat:2A cat:3', 'sad', '{sad,happy}',
     row('Main "St", 1', null), 5, 4294967295, 'types', '1/ABCDEF', 'c', 'a name'),
    (2, false, 0, 0, 'NaN', 'Infinity', 'NaN', 'NaN', '', '', '', 'infinity', '24:00', '00:00-12',
     'infinity', '-infinity', '-00:00:00.000001', null, 'null', 'null', null, null, null, null, '',
     null, null, '', 'empty', '{}', '{}', '{}', '', '', null, '{}', row(null, null), null, 0, 0,
     '0/0', '', ''),
    (3, null, null, null, '-0', '-Infinity', '-0.000', '0.0000000001', null, null, null,
     '0044-03-15 BC', '00:00:00', null, '4713-01-01 BC', '294276-12-31 23:59:59.999999+00', null,
     null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null,
     null, null, null, null, null, null, null, null, null, null);
insert into types (id) values (4);

create table evolving (id int primary key, kept text, gone text);
insert into evolving values (1, 'a', 'b'), (2, 'c', 'd'), (3, 'e', 'f');
create table key_moves (a int primary key, b int not null, t text);
alter table key_moves alter t set storage external;
insert into key_moves select n, n * 10, repeat('t', 5000) || n from generate_series(1, 6) n;
create table gains_key (id int not null, t text, n int default 0);
alter table gains_key alter t set storage external;
alter table gains_key replica identity full;
insert into gains_key
    values (1, 'one'), (1, 'one'), (2, repeat('2', 5000)), (3, repeat('3', 5000));
create table loses_key (id int primary key, t text);
insert into loses_key values (1, 'one'), (2, 'two'), (3, 'three');
create table renamed_later (id int primary key, t text);
insert into renamed_later values (1, 'one'), (2, 'two');
create table doomed (id int primary key, t text);
insert into doomed values (1, 'gone soon');

insert into customers (name, email, mood, home, age) values
    ('Ann', 'Ann@Example.org', 'happy', row('Elm', 7), 41), ('Böb', null, null, null, null);
insert into no_columns select from generate_series(1, 3);
insert into one_text values (null), (''), (null), (E'\\.'), (E'a\n\\.\nb');
insert into inserted_only select n, 'row ' || n from generate_series(1, 30) n;
insert into external_key select string_agg(md5(n::text), ''), 'long' from generate_series(1, 80) n;
insert into unlogged_one values (1);
insert into "Weird Name"."Täble.x" values (1, 'x', 'y', '2026-01-01', 'I', 'É');
insert into "Weird Name".child values (1, 1), (2, null);

create view order_totals as
    select order_id, sum(total) as total from order_items group by order_id;
create materialized view customer_names as select id, upper(name) as name from customers;
create unique index customer_names_id on customer_names (id);
create table audit (id bigint generated by default as identity primary key, what text);
create function note_change() returns trigger language plpgsql as $$
begin
    insert into public.audit (what) values (tg_op || ' ' || tg_table_name);
    return null;
end $$;
create trigger orders_noted after insert or update on orders
    for each row execute function note_change();
create function note_drop() returns event_trigger language plpgsql as $$
begin
    insert into public.audit (what) select 'drop ' || object_identity from pg_event_trigger_dropped_objects()
        where object_type = 'schema';
end $$;
create event trigger drops_noted on sql_drop execute function note_drop();
alter table customers enable row level security;
create policy everyone on customers using (true);
comment on table customers is 'It''s who buys';
comment on column customers.mood is 'how they feel';
