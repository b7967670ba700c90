"""What has hurt users of every change-data-capture system, as SQL: see `test_traps`."""

from __future__ import annotations

from dataclasses import dataclass

PARTITIONED = """
create table p (id int, k int, v text, primary key (id, k)) partition by list (k);
create table p1 partition of p for values in (1);
create table p2 partition of p for values in (2, 3) partition by range (id);
create table p2_low partition of p2 for values from (0) to (100);
create table p2_high partition of p2 for values from (100) to (1000);
create table p_rest partition of p default;
create table joins (id int not null, k int not null, v text, primary key (id, k));
create table keyless (id int not null, k int not null, v text);
insert into p select n, n % 5, 'v' || n from generate_series(0, 200, 7) n;
insert into joins values (1, 8, 'a'), (2, 8, 'b');
insert into keyless values (1, 9, 'a'), (2, 9, 'b');
"""


@dataclass(frozen=True)
class Trap:
    """Tables, and what is done to them, in a schema of its own.

    Each of `steps` is one query string, run outside of a transaction; the state after each is
    photographed. Where something happens `unseen` (rows change without events, tables come and go,
    shapes and names change), states may be refused until somebody has looked; all others must be
    known. `since`: the first PostgreSQL that has it.
    """

    setup: str
    steps: tuple[str, ...]
    unseen: bool = False
    since: int = 14


TRAPS = {
    "truncate": Trap(
        """
        create table a (id serial primary key, v text);
        create table b (id int primary key, a int references a);
        create table c (id int primary key, b int references b on delete cascade);
        create table loose (v int);
        insert into a (v) select 'v' from generate_series(1, 5);
        insert into b values (1, 1), (2, 2); insert into c values (1, 1);
        insert into loose values (1);
        """,
        (
            "truncate a restart identity cascade",
            "insert into a (v) values ('again'); insert into b values (1, 1);"
            " insert into c values (1, 1), (2, 1)",
            "begin; insert into a (v) values ('gone'); update b set a = null; truncate b, c, loose;"
            " insert into b values (3, 1); insert into loose values (2); truncate loose;"
            " insert into loose values (3), (3); commit",
            "begin; truncate a, b, c; rollback",
            "begin; savepoint s; truncate only c, loose; rollback to s;"
            " insert into c values (7, 3); commit",
            "truncate a, b, c, loose; truncate a, b, c, loose restart identity",
        ),
    ),
    "key_changes": Trap(
        """
        create table t (a int, b text, v text, primary key (a, b));
        alter table t alter v set storage external;
        insert into t select n, 'b', repeat('x', 4000) || n from generate_series(1, 6) n;
        create table full_key (id int primary key, v text);
        alter table full_key replica identity full;
        insert into full_key values (1, 'one'), (2, 'two');
        """,
        (
            "update t set a = -a",
            "begin; update t set a = 100 where a = -1; update t set a = -1 where a = -2;"
            " update t set a = -2 where a = 100; commit",
            "update t set b = b || '!', v = 'short' where a = -3",
            "begin; delete from t where a = -4; update t set a = -4 where a = -5;"
            " insert into t values (-5, 'b', null); commit",
            "begin; update t set a = 0 where a = -6; update t set a = -6 where a = 0; commit",
            "begin; insert into t values (7, 'b', 'x'); update t set a = 8 where a = 7;"
            " delete from t where a = 8; insert into t values (7, 'b', 'y'); commit",
            "begin; update full_key set id = 3 where id = 1; update full_key set id = 1 where"
            " id = 2; update full_key set id = 2, v = 'moved' where id = 3; commit",
            "insert into t values (7, 'b', 'z'), (9, 'b', 'nine')"
            " on conflict (a, b) do update set a = t.a + 10, v = excluded.v",
            "with gone as (delete from full_key returning *)"
            " insert into full_key select id + 10, v from gone",
        ),
    ),
    "multisets": Trap(
        """
        create table bag (a int, b text); alter table bag replica identity full;
        insert into bag values (1, 'x'), (1, 'x'), (1, null), (null, null), (null, null);
        """,
        (
            "delete from bag where ctid = (select min(ctid) from bag where b = 'x')",
            "update bag set b = 'x' where a is null",
            "update bag set a = 1",
            "delete from bag where ctid = (select max(ctid) from bag where a = 1);"
            " insert into bag select * from bag",
            "begin; update bag set a = 2; update bag set a = 1; insert into bag values (1, 'x');"
            " commit",
        ),
    ),
    "cascades": Trap(
        """
        create table parent (id int primary key, v text);
        create table child (id int primary key, parent int default 1 references parent
            on delete cascade on update cascade);
        create table nulled (id int primary key, parent int references parent
            on delete set null on update cascade deferrable initially deferred);
        create table grandchild (id int primary key, child int references child on delete cascade);
        insert into parent select n, 'p' from generate_series(1, 6) n;
        insert into child select n, n from generate_series(1, 6) n;
        insert into nulled select n, n from generate_series(1, 6) n;
        insert into grandchild select n, n from generate_series(1, 6) n;
        """,
        (
            "delete from parent where id < 3",
            "update parent set id = id + 100 where id > 4",
            "begin; insert into nulled values (50, 999); insert into parent values (999, 'late');"
            " commit",
            "begin; delete from parent; rollback",
            "delete from parent",
        ),
    ),
    "merge": Trap(
        """
        create table t (id int primary key, v text, n int);
        insert into t select n, 'v' || n, n from generate_series(1, 6) n;
        """,
        (
            "merge into t using (values (1, 'a'), (2, null), (9, 'new')) s (id, v) on t.id = s.id"
            " when matched and s.v is null then delete when matched then update set v = s.v"
            " when not matched then insert values (s.id, s.v, 0)",
            "begin; merge into t using (select 3 as id) s on t.id = s.id when matched then update"
            " set id = 30; rollback",
            "merge into t using (select 3 as id) s on t.id = s.id when matched then update"
            " set id = 30, n = null",
        ),
        since=15,
    ),
    "copies": Trap(
        "create table t (id int primary key); create table loose (id int);"
        " alter table loose replica identity full",
        (
            "copy t from program 'seq 2000'",
            "begin; copy loose from program 'seq 500'; copy loose from program 'seq 500';"
            " delete from loose where id > 400; update loose set id = 1 where id < 10; commit",
            "begin; copy t from program 'seq 2001 2100'; update t set id = -id where id > 2050;"
            " delete from t where id between 2001 and 2010; commit",
        ),
    ),
    "savepoints": Trap(
        "create table t (id int primary key, v text); create table made (id int)",
        (
            "begin; insert into t values (1, 'a'); savepoint s; insert into t values (2, 'b');"
            " savepoint s2; update t set v = 'z'; rollback to s2; update t set v = v || '!';"
            " release s; insert into t values (3, 'c'); commit",
            "begin; savepoint s; delete from t; rollback to s; savepoint s; truncate t;"
            " rollback to s; savepoint s; alter table t add x int default 5; rollback to s;"
            " insert into t values (4, 'd'); commit",
            "begin; savepoint s; insert into t values (5, 'e'); rollback to s; commit",
            "do $$ begin for i in 1 .. 6 loop begin insert into t values (i, 'loop');"
            " exception when unique_violation then update t set v = 'met' where id = i; end;"
            " end loop; end $$",
        ),
    ),
    "triggers": Trap(
        """
        create table t (id int primary key, v text);
        create table noted (id int generated always as identity primary key, was text, now text);
        create function shout() returns trigger language plpgsql as
            $$ begin new.v := upper(new.v); return new; end $$;
        create function note() returns trigger language plpgsql as
            $$ begin insert into triggers.noted (was, now) values (old.v, new.v);
               return null; end $$;
        create trigger shouts before insert or update on t for each row execute function shout();
        create trigger notes after insert or update or delete on t
            for each row execute function note();
        """,
        (
            "insert into t values (1, 'a'), (2, 'b')",
            "update t set v = 'c' where id = 1",
            "delete from t",
            "set session_replication_role = replica; insert into t values (3, 'quiet');"
            " reset session_replication_role",
        ),
    ),
    "messages": Trap(
        "create table t (id int primary key)",
        (
            "begin; select pg_logical_emit_message(true, 'waly', '{}'); insert into t values (1);"
            " select pg_logical_emit_message(false, 'other', 'x'), pg_logical_emit_message(true,"
            " '', '\\x00ff'::bytea); insert into t values (2); commit",
            "begin; insert into t values (3); savepoint s; select pg_logical_emit_message(true,"
            " 'waly', '{\"user\": \"nobody\"}'); rollback to s; commit",
            "select pg_logical_emit_message(false, 'waly', 'x')",
            "begin; select pg_logical_emit_message(false, 'waly', 'x'); insert into t values (4);"
            " rollback",
            "select pg_logical_emit_message(true, 'waly', repeat('x', 100000))",
        ),
    ),
    "origins": Trap(
        "create table t (id int primary key, v text)",
        (
            "select pg_replication_origin_create('waly_trap');"
            " select pg_replication_origin_session_setup('waly_trap')",
            "begin; select pg_replication_origin_xact_setup('0/ABCDEF', now());"
            " insert into t values (1, 'from afar'); commit",
            "update t set v = 'from afar again'",
            "select pg_replication_origin_session_reset()",
            "select pg_replication_origin_drop('waly_trap'); update t set v = 'from here'",
        ),
    ),
    "other_publications": Trap(
        """
        create table t (id int primary key, a text, b text);
        create publication trap_rows for table t where (id > 10) with (publish = 'insert, update');
        create publication trap_columns for table t (id, a);
        create publication trap_schema for tables in schema other_publications;
        """,
        (
            "insert into t values (1, 'a', 'b'), (11, 'a', 'b')",
            "update t set id = id + 5, b = 'c'",
            "delete from t where id = 6",
            "drop publication trap_rows, trap_columns, trap_schema; update t set a = null",
        ),
        since=15,
    ),
    "generated": Trap(
        """
        create table t (id int primary key, a int, twice int generated always as (a * 2) stored);
        create table always (id int generated always as identity primary key, v text);
        create table by_default (id int generated by default as identity primary key, v text);
        insert into t values (1, 1), (2, 2); insert into always (v) values ('a');
        """,
        (
            "update t set a = a + 10; insert into t values (3, 3)",
            "insert into always overriding system value values (100, 'x');"
            " insert into always (v) values ('b'); update always set id = default where id = 100",
            "insert into by_default values (5, 'e'); insert into by_default (v) values ('f');"
            " insert into by_default overriding user value values (9, 'g')",
            "alter table always alter id restart with 1000; insert into always (v) values ('c')",
        ),
    ),
    "virtual": Trap(
        """
        create table t (id int primary key, a int, twice int generated always as (a * 2) virtual);
        insert into t values (1, 1), (2, 2);
        """,
        ("update t set a = a + 10; insert into t values (3, 3)", "delete from t where twice > 22"),
        since=18,
    ),
    "partitions": Trap(
        PARTITIONED,
        (
            "update p set k = (k + 1) % 5",
            "update p set id = id + 90 where k in (2, 3)",
            "truncate p1",
            "insert into p select n, n % 5, 'again' from generate_series(1000, 1010) n"
            " where n % 5 not in (2, 3)",
            "truncate p2",
            "insert into p values (50, 2, 'x'), (500, 3, 'y')",
            "delete from p where k = 4",
        ),
    ),
    "parts_that_come_and_go": Trap(
        PARTITIONED,
        (
            "alter table p attach partition joins for values in (8)",
            "update p set v = 'touched' where k = 8; insert into p values (3, 8, 'c')",
            "alter table p attach partition keyless for values in (9)",
            "delete from p where k = 9 and id = 1",
            "update p set k = 1 where k = 9",
            "alter table p detach partition p1",
            "insert into p1 values (1, 77, 'alone'); update p1 set v = 'alone' where id < 50",
            "drop table p2_high",
            "alter table p detach partition p_rest; update p_rest set v = 'alone'",
            "alter table p detach partition joins concurrently",
            "alter table p attach partition p_rest default",
            "truncate p",
            "create table p_new partition of p for values in (20)",
            "insert into p values (1, 20, 'new'), (2, 21, 'rest')",
            "drop table p",
        ),
        unseen=True,
    ),
    "inheritance": Trap(
        """
        create table parent (id int primary key, v text);
        create table child (extra int, primary key (id)) inherits (parent);
        create table keyless () inherits (parent);
        insert into parent values (1, 'p'); insert into child values (2, 'c', 5), (3, 'c', 6);
        insert into keyless values (4, 'k');
        """,
        (
            "update parent set v = v || '!' where id < 4",
            "delete from only parent",
            "insert into keyless values (5, 'k')",
            "truncate parent",
            "insert into child values (7, 'c', 7); insert into parent values (7, 'p')",
            "truncate only parent",
        ),
    ),
    "kinship": Trap(
        """
        create table father (id int primary key, v text);
        create table child (primary key (id)) inherits (father);
        create table alone (id int primary key, v text);
        insert into father values (1, 'f'); insert into child values (2, 'c');
        """,
        (
            "truncate father",
            "insert into child values (3, 'c')",
            "alter table child no inherit father; update child set v = 'd'",
            "alter table alone inherit father; insert into alone values (4, 'a')",
            "update father set v = 'all'",
        ),
        unseen=True,
    ),
    "schemas": Trap(
        """
        create schema schemas_other;
        create table t (id int primary key, v text);
        create table schemas_other.t (id int primary key, v text);
        insert into t values (1, 'here'); insert into schemas_other.t values (1, 'there');
        """,
        (
            "update t set v = 'h'; update schemas_other.t set v = 't'",
            "alter table t rename to u; alter index t_pkey rename to u_pkey;"
            " insert into u values (2, 'renamed')",
            "alter table u set schema schemas_other; update schemas_other.u set v = 'moved'",
            "alter schema schemas_other rename to schemas_renamed",
            "insert into schemas_renamed.t values (3, 'after')",
        ),
        unseen=True,
    ),
    "names_used_again": Trap(
        "create table t (id int primary key, v text); insert into t values (1, 'first')",
        (
            "drop table t; create table t (id text primary key, other int)",
            "insert into t values ('x', 1)",
            "begin; create table next (like t including all); insert into next select * from t;"
            " insert into next values ('y', 2); alter table t rename to former;"
            " alter table next rename to t; commit",
            "update t set other = 3; drop table former",
            "begin; drop table t; create table t (n int primary key); insert into t values (1);"
            " rollback",
            "insert into t values ('z', 4)",
        ),
        unseen=True,
    ),
    "logging": Trap(
        """
        create unlogged table becomes_logged (id int primary key, v text);
        create table loose (v text); insert into loose values ('a');
        insert into becomes_logged values (1, 'unlogged');
        """,
        (
            "alter table becomes_logged set logged",
            "update becomes_logged set v = 'logged'; insert into becomes_logged values (2, 'b')",
            "alter table loose set unlogged",
            "insert into loose values ('not logged')",
            "alter table loose set logged",
            "insert into loose values ('logged')",
        ),
        unseen=True,
    ),
    "shapes": Trap(
        """
        create table t (id int primary key, a varchar(10), b text, c int);
        insert into t select n, 'a' || n, 'b', n from generate_series(1, 5) n;
        """,
        (
            "begin; insert into t values (6, 'a', 'b', 6); alter table t add d text;"
            " insert into t values (7, 'a', 'b', 7, 'd'); update t set d = 'set' where id < 3;"
            " alter table t drop c; update t set a = 'x' where id = 6;"
            " alter table t rename b to renamed; delete from t where id = 5; commit",
            "alter table t alter a type varchar(20); update t set a = repeat('y', 15)",
            "alter table t alter a type text; insert into t values (8, repeat('z', 50), 'b', 'd')",
            "alter table t add c int; update t set c = 1 where id = 1",
            "alter table t rename a to b; alter table t rename renamed to a;"
            " update t set a = 'is a', b = 'is b' where id = 2",
            "alter table t alter b set not null, alter b set default 'x', add check (id > 0);"
            " insert into t (id) values (9)",
        ),
        unseen=True,
    ),
    "rewrites": Trap(
        """
        create table t (id int primary key, v text);
        insert into t select n, 'v' || n from generate_series(1, 50) n;
        create materialized view seen as select id from t;
        """,
        (
            "begin; update t set v = 'u' where id = 1; alter table t add x int default 42;"
            " update t set x = 43 where id = 2; commit",
            "begin; alter table t alter v type varchar using v || '!';"
            " insert into t values (100, 'after'); commit",
            "cluster t using t_pkey",
            "refresh materialized view seen",
            "alter table t add y double precision default random()",
            "delete from t where id > 10",
        ),
        unseen=True,
    ),
    "identities": Trap(
        """
        create table t (id int primary key, other int not null unique, v text);
        alter table t alter v set storage external;
        insert into t select n, n * 10, repeat('v', 4000) || n from generate_series(1, 9) n;
        """,
        (
            "update t set other = other + 1 where id = 1; delete from t where id = 9",
            "alter table t replica identity full",
            "update t set other = other + 1 where id = 2; update t set id = 20 where id = 3",
            "alter table t replica identity using index t_other_key",
            "update t set other = 1000 where id = 4; update t set id = 21 where id = 5;"
            " delete from t where id = 6",
            "begin; update t set id = 22 where id = 7; alter table t replica identity default;"
            " update t set other = 2000 where id = 8; commit",
            "update t set v = 'end' where id = 1",
        ),
        unseen=True,
    ),
}
