"""Powertools' Idempotency on DynamoDB, with claims that can be renewed.

Importing Powertools' module costs a tenth of a second (it imports boto3): see handler/jobs.py.
"""

from contextlib import suppress
from typing import Any

from aws_lambda_powertools.utilities.idempotency import DynamoDBPersistenceLayer
from aws_lambda_powertools.utilities.idempotency.persistence.datarecord import DataRecord
from botocore.config import Config

# A table that does not answer holds a job up for some seconds, not for the default minutes.
_CONFIG = Config(
    connect_timeout=2, read_timeout=3, retries={"mode": "standard", "total_max_attempts": 2}
)


class DynamoDBLayer(DynamoDBPersistenceLayer):
    """The table `name`: string key `id`, time to live `expiration`."""

    def __init__(self, name: str) -> None:
        super().__init__(name, boto_config=_CONFIG)

    @property
    def identity(self) -> str:
        """What all machines have in common that share the table."""
        return str(self.table_name)

    def renew(self, data: dict[str, Any], until_ms: int) -> None:
        """Let the claim of `data` end at `until_ms` (Unix time)."""
        key = self._get_hashed_idempotency_key(data)
        assert key is not None
        self.client.update_item(
            TableName=self.table_name,
            Key=self._get_key(key),
            UpdateExpression="SET #until = :until",
            ExpressionAttributeNames={"#until": self.in_progress_expiry_attr},
            ExpressionAttributeValues={":until": {"N": str(until_ms)}},
            # Not one that was taken away meanwhile.
            ConditionExpression=f"attribute_exists({self.key_attr})",
        )

    def _delete_record(self, data_record: DataRecord) -> None:
        # Not the response of a repeat that took the claim over when it had lapsed.
        with suppress(self.client.exceptions.ConditionalCheckFailedException):
            self.client.delete_item(
                TableName=self.table_name,
                Key=self._get_key(data_record.idempotency_key),
                ConditionExpression="#status = :running",
                ExpressionAttributeNames={"#status": self.status_attr},
                ExpressionAttributeValues={":running": {"S": "INPROGRESS"}},
            )

    def close(self) -> None:
        self.client.close()
