"""Column names of user tables, and checks that tables have them."""

from dataclasses import dataclass


@dataclass(frozen=True)  # no slots: jsonargparse reads __dict__
class Columns:
    """Column names in the user's tables.

    Attributes:
        item_id: The catalogue's own id of an item, in every table.
        title: Title of an item.
        text: Text of an item.
        user_id: User of an interaction.
        timestamp: Time of an interaction.
        rating: Rating of an interaction.
        weight: How often training draws an interaction, relative to others.
        query_id: Id of a query.
        query: Text of a query.
        item_ids: Answers of a query.
        group: Group of a query and its paraphrases.
        split: Split of a query.
    """

    item_id: str = "item_id"
    title: str = "title"
    text: str = "text"
    user_id: str = "user_id"
    timestamp: str = "timestamp"
    rating: str = "rating"
    weight: str = "weight"
    query_id: str = "query_id"
    query: str = "query"
    item_ids: str = "item_ids"
    group: str = "group"
    split: str = "split"


@dataclass(frozen=True)
class LogColumns:
    """Column names in a click log and in the table of its items.

    Attributes:
        item_id: The catalogue's own id of an item, in both.
        title: Title of an item.
        text: Text of an item.
        user_id: User of an event.
        query: Text of the query before an event.
        timestamp: Time of an event.
        event: Kind of an event.
        position: Position of the item in the list that was shown, from 1.
    """

    item_id: str = "item_id"
    title: str = "title"
    text: str = "text"
    user_id: str = "user_id"
    query: str = "query"
    timestamp: str = "timestamp"
    event: str = "event"
    position: str = "position"


DEFAULT_COLUMNS, DEFAULT_LOG_COLUMNS = Columns(), LogColumns()
