from waly_cdc.source import publication
from waly_cdc.source.catalog import Table


def table(name: str, *, followed: bool = True) -> Table:
    return Table(
        oid=1,
        schema='s"x',
        name=name,
        replica_identity="d",
        persistence="p",
        columns=(),
        generated=(),
        key=(),
        followed=followed,
        row_estimate=0,
        bytes=0,
        owned=True,
        readable=True,
    )


def published(name: str, *tables: tuple[str, str]) -> publication.Publication:
    return publication.Publication(
        name=name,
        actions=frozenset({"update", "delete"}),
        every_table=False,
        via_root=False,
        owned=True,
        tables=frozenset(tables),
        restricted=frozenset(),
    )


def test_only_tables_with_an_identity_publish_updates() -> None:
    tables = [table("keyed"), table("keyless", followed=False)]
    everything, keyed = publication.as_text(publication.creation("w", tables, every_table=True))
    assert everything == (
        "CREATE PUBLICATION \"w_all\" FOR ALL TABLES WITH (publish = 'insert, truncate');"
    )
    assert keyed == (
        'CREATE PUBLICATION "w_keyed" FOR TABLE ONLY "s""x"."keyed"'
        " WITH (publish = 'update, delete');"
    )


def test_without_a_superuser_tables_are_listed() -> None:
    tables = [table("a"), table("b%s.c", followed=False)]
    everything, _ = publication.as_text(publication.creation("w", tables, every_table=False))
    assert 'FOR TABLE ONLY "s""x"."a", ONLY "s""x"."b%s.c" WITH' in everything


def test_no_table_at_all_is_a_publication_too() -> None:
    _, keyed = publication.as_text(publication.creation("w", [], every_table=True))
    assert keyed == "CREATE PUBLICATION \"w_keyed\" WITH (publish = 'update, delete');"


def test_names_fit_and_stay_distinct() -> None:
    one, other = "x" * 62 + "a", "x" * 62 + "b"
    assert len({*publication.names(one), *publication.names(other)}) == 4
    assert all(len(name) <= 63 for name in publication.names(one))


def test_changes_follow_the_tables() -> None:
    keyed = published("w_keyed", ('s"x', "lost_its_key"))
    tables = [table("new"), table("lost_its_key", followed=False)]
    assert publication.as_text(publication.changes((None, keyed), tables)) == [
        'ALTER PUBLICATION "w_keyed" DROP TABLE ONLY "s""x"."lost_its_key";',
        'ALTER PUBLICATION "w_keyed" ADD TABLE ONLY "s""x"."new";',
    ]


def test_a_publication_with_other_actions_does_not_fit() -> None:
    assert publication.misfit(published("w_keyed")) is None
    assert "publishes delete, update instead" in (publication.misfit(published("w_all")) or "")
