"""A sink for what is made here, where there is no input to replay after a crash; every delivery is checked."""

from bytewax.outputs import DynamicSink, StatelessSinkPartition

from dataflow.connectors.delivery import Delivery
from dataflow.connectors.kafka_clients import count_partitions
from dataflow.errors import UserError
from dataflow.process import lifecycle
from dataflow.settings import Settings


class ProducerSink(DynamicSink[tuple[bytes | None, bytes]]):
    """Writes `(key, value)` items to a topic, partitioned by key; every delivery is checked.

    For what is made here (generated transactions, their truth), where there is no input to replay after a crash.
    """

    def __init__(self, settings: Settings, topic: str):
        self._settings = settings
        self._topic = topic

    @lifecycle.exit_on_user_error
    def build(self, step_id: str, worker_index: int, worker_count: int) -> "_ProducerPart":
        """Waits for the topic, then makes this worker's producer.

        Raises:
            UserError: no broker answers, or the topic does not exist.
        """
        count_partitions(self._settings, self._topic)
        return _ProducerPart(Delivery(self._settings), self._topic)


class _ProducerPart(StatelessSinkPartition[tuple[bytes | None, bytes]]):
    def __init__(self, delivery: Delivery, topic: str):
        self._delivery = delivery
        self._topic = topic

    @lifecycle.exit_on_user_error
    def write_batch(self, items: list[tuple[bytes | None, bytes]]) -> None:
        for key, value in items:
            self._delivery.produce(self._topic, key=key, value=value)
        self._delivery.poll()

    def close(self) -> None:
        # Bytewax drops the part also while it unwinds from an error; an exception there would abort the process.
        try:
            self._delivery.flush()
        except UserError as error:
            lifecycle.fail(error)
