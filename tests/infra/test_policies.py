"""infra/policies: what a user needs who deploys the stack, and who runs it.

The permissions come from two lists in cfn-lint, both published by AWS: what the handlers of each
resource type call (CloudFormation's registry), and the actions that exist, with the resources that
they accept (IAM's service authorization reference).
"""

import fnmatch
import json
import tomllib
from collections.abc import Iterator
from typing import Any

import pytest
from cfnlint.api import ManualArgs, lint
from cfnlint.data import AdditionalSpecs
from cfnlint.helpers import load_resource
from cfnlint.schema.manager import ProviderSchemaManager

from handler.settings import PROJECT
from tests.infra.template import template

FOLDER = PROJECT / "infra" / "policies"
DEPLOY = ("deploy-functions", "deploy-resources")
POLICIES = (*DEPLOY, "operate")
# https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_iam-quotas.html; spaces do not count.
MAX_CHARACTERS = 6_144
CALLS = ("create", "read", "update", "delete")
TYPES = sorted({resource["Type"] for resource in template()["Resources"].values()})
SERVICES: dict[str, Any] = load_resource(AdditionalSpecs, "Policies.json")

# What CloudFormation's handlers call only for properties that the template does not set.
NOT_CALLED = {
    "a key of one's own": {
        *("kms:CreateGrant", "kms:Decrypt", "kms:DescribeKey", "kms:Encrypt"),
        *("kms:GenerateDataKey", "kms:ListAliases", "kms:RevokeGrant"),
        *("logs:AssociateKmsKey", "logs:DisassociateKmsKey"),
    },
    "gradual deployment of an alias": {
        *("codedeploy:CreateDeployment", "codedeploy:GetDeployment"),
        *("codedeploy:GetDeploymentConfig", "codedeploy:GetDeploymentGroup"),
        "codedeploy:StopDeployment",
    },
    "provisioned concurrency": {
        *("lambda:PutProvisionedConcurrencyConfig", "lambda:DeleteProvisionedConcurrencyConfig"),
    },
    "layers, signed code, a fixed version of the runtime": {
        *("lambda:AssociateRuntimeAlias", "lambda:GetCodeSigningConfig", "lambda:GetLayerVersion"),
        *("lambda:DeleteFunctionCodeSigningConfig", "lambda:PutFunctionCodeSigningConfig"),
    },
    "a permissions boundary": {
        *("iam:DeleteRolePermissionsBoundary", "iam:PutRolePermissionsBoundary"),
    },
    "replicas, import, streams, backups and policy of a table": {
        *("dynamodb:AssociateTableReplica", "dynamodb:BatchWriteItem"),
        *("dynamodb:CreateTableReplica", "dynamodb:DeleteItem", "dynamodb:DeleteResourcePolicy"),
        *("dynamodb:DescribeImport", "dynamodb:DisableKinesisStreamingDestination"),
        *("dynamodb:EnableKinesisStreamingDestination", "dynamodb:GetItem"),
        *("dynamodb:ImportTable", "dynamodb:PutItem", "dynamodb:PutResourcePolicy"),
        *("dynamodb:Query", "dynamodb:Scan", "dynamodb:UpdateContinuousBackups"),
        *("dynamodb:UpdateContributorInsights", "dynamodb:UpdateItem"),
        *("dynamodb:UpdateKinesisStreamingDestination", "kinesis:DescribeStream"),
        *("kinesis:PutRecords", "logs:CreateLogStream", "logs:DescribeLogStreams"),
        *("logs:PutLogEvents", "s3:GetObjectMetadata"),
    },
    "delivery, index and policies of logs": {
        *("firehose:TagDeliveryStream", "logs:CreateLogDelivery", "logs:DeleteIndexPolicy"),
        *("logs:DeleteResourcePolicy", "logs:PutBearerTokenAuthentication"),
        *("logs:PutDataProtectionPolicy", "logs:PutIndexPolicy"),
        *("logs:PutLogGroupDeletionProtection", "logs:PutResourcePolicy", "s3:REST.PUT.OBJECT"),
    },
    "what else a bucket can have": {
        *("s3:CreateBucketMetadataTableConfiguration", "s3:DeleteBucketAnalyticsConfiguration"),
        *("s3:DeleteBucketCors", "s3:DeleteBucketEncryption", "s3:DeleteBucketLifecycle"),
        *("s3:DeleteBucketMetadataTableConfiguration", "s3:DeleteBucketMetricsConfiguration"),
        *("s3:DeleteBucketReplication", "s3:DeleteBucketWebsite", "s3:DeleteObject"),
        *("s3:PutAccelerateConfiguration", "s3:PutAnalyticsConfiguration", "s3:PutBucketAbac"),
        *("s3:PutBucketAcl", "s3:PutBucketCORS", "s3:PutBucketLogging"),
        *("s3:PutBucketObjectLockConfiguration", "s3:PutBucketReplication"),
        *("s3:PutBucketWebsite", "s3:PutIntelligentTieringConfiguration"),
        *("s3:PutInventoryConfiguration", "s3:PutMetricsConfiguration", "s3:PutObjectAcl"),
        *("s3:PutObjectLockConfiguration", "s3:PutReplicationConfiguration"),
        "s3:UpdateBucketMetadataAnnotationTableConfiguration",
        "s3:UpdateBucketMetadataInventoryTableConfiguration",
        "s3:UpdateBucketMetadataJournalTableConfiguration",
        *("s3tables:CreateNamespace", "s3tables:CreateTable", "s3tables:CreateTableBucket"),
        *("s3tables:GetTable", "s3tables:GetTableMetadataLocation"),
        *("s3tables:PutTableBucketPolicy", "s3tables:PutTableEncryption"),
        *("s3tables:PutTablePolicy", "s3tables:UpdateTableMetadataLocation"),
    },
}
# What the deployment needs, and no handler of a resource names.
BESIDE_THE_HANDLERS = {
    "SAM CLI makes, watches and runs change sets": {
        *("cloudformation:CreateChangeSet", "cloudformation:DeleteChangeSet"),
        *("cloudformation:DeleteStack", "cloudformation:DescribeChangeSet"),
        *("cloudformation:DescribeStackEvents", "cloudformation:DescribeStackResource"),
        *("cloudformation:DescribeStacks", "cloudformation:ExecuteChangeSet"),
        "cloudformation:GetTemplateSummary",
    },
    "SAM CLI uploads the code of the API function": {"s3:PutObject"},
    # https://docs.aws.amazon.com/lambda/latest/dg/images-create.html#gettingstarted-images-permissions
    "Lambda reads the image from ECR": {
        *("ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"),
        *("ecr:GetRepositoryPolicy", "ecr:SetRepositoryPolicy"),
    },
    "the state of the function, for a person": {"lambda:GetFunctionConfiguration"},
}


def policy(name: str) -> dict[str, Any]:
    """A policy with its placeholders replaced, as the guide's `sed` does."""
    text = (FOLDER / f"{name}.json").read_text()
    filled = text.replace("ACCOUNT", "123456789012").replace("REGION", "us-east-1")
    loaded: dict[str, Any] = json.loads(filled)
    return loaded


def as_list(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def statements(*names: str) -> Iterator[dict[str, Any]]:
    for name in names:
        yield from policy(name)["Statement"]


def actions(*names: str) -> set[str]:
    return {action for s in statements(*names) for action in as_list(s["Action"])}


def is_allowed(permission: str) -> bool:
    return any(fnmatch.fnmatchcase(permission, pattern) for pattern in actions(*DEPLOY))


def called(resource_type: str) -> set[str]:
    """What CloudFormation calls to make, read, change and delete such a resource."""
    schema = ProviderSchemaManager().get_resource_schema("us-east-1", resource_type).schema
    handlers = schema["handlers"]
    return {
        permission
        for call in CALLS
        for permission in handlers.get(call, {"permissions": []})["permissions"]
    }


@pytest.mark.parametrize("resource_type", TYPES)
def test_deployer_may_do_what_cloudformation_does_for_each_resource(resource_type: str) -> None:
    not_called = set().union(*NOT_CALLED.values())

    missing = {action for action in called(resource_type) if not is_allowed(action)}

    assert missing <= not_called


def test_what_is_left_out_is_asked_for_by_a_handler_and_is_not_allowed() -> None:
    asked = set().union(*map(called, TYPES))

    for feature, left_out in NOT_CALLED.items():
        assert left_out <= asked, feature
        assert not set(filter(is_allowed, left_out)), feature


def test_deployer_may_do_nothing_that_the_deployment_does_not_need() -> None:
    asked = set().union(*map(called, TYPES))

    unasked = {
        allowed
        for allowed in actions(*DEPLOY)
        if not any(fnmatch.fnmatchcase(action, allowed) for action in asked)
    }

    assert unasked == set().union(*BESIDE_THE_HANDLERS.values())


@pytest.mark.parametrize("name", POLICIES)
def test_policy_is_short_enough_for_iam(name: str) -> None:
    text = (FOLDER / f"{name}.json").read_text()

    # The longest Region, and no other placeholder.
    filled = text.replace("ACCOUNT", "123456789012").replace("REGION", "ap-southeast-1")
    assert len("".join(filled.split())) <= MAX_CHARACTERS


@pytest.mark.parametrize("name", POLICIES)
def test_star_stands_only_where_iam_knows_no_resource(name: str) -> None:
    for statement in statements(name):
        if "*" not in as_list(statement["Resource"]):
            continue
        for action in as_list(statement["Action"]):
            service, _, call = action.partition(":")
            known = SERVICES[service]["Actions"][call.lower()]
            assert not known.get("Resources"), action


@pytest.mark.parametrize("name", POLICIES)
def test_wildcards_of_actions_only_read(name: str) -> None:
    wild = {action for action in actions(name) if "*" in action}

    assert all(action.partition(":")[2].startswith("Get") for action in wild)


def test_deployer_attaches_only_the_policy_of_the_operator_role() -> None:
    (attach,) = (s for s in statements(*DEPLOY) if "iam:AttachRolePolicy" in s["Action"])
    (managed,) = template()["Resources"]["OperatorRole"]["Properties"]["ManagedPolicyArns"]

    (allowed,) = attach["Condition"]["ArnEquals"].values()
    assert allowed == managed["Fn::Sub"].replace("${AWS::Partition}", "aws")


def test_roles_are_passed_to_lambda_alone() -> None:
    (passed,) = (s for s in statements(*POLICIES) if "iam:PassRole" in s["Action"])

    assert passed["Condition"] == {"StringEquals": {"iam:PassedToService": "lambda.amazonaws.com"}}


def test_policies_cover_the_stacks_of_the_profiles() -> None:
    """CloudFormation begins the name of a resource with the name of its stack."""
    profiles = tomllib.loads((PROJECT / "samconfig.toml").read_text())
    del profiles["version"]
    names = [profile["global"]["parameters"]["stack_name"] for profile in profiles.values()]

    assert all(name.startswith("lambda-comfyui") for name in names)


def broken_rules(document: dict[str, Any]) -> list[str]:
    """The rules of cfn-lint that a policy breaks: unknown actions, resources that do not fit."""
    resource = {
        "Type": "AWS::IAM::Policy",
        "Properties": {"PolicyName": "p", "Users": ["u"], "PolicyDocument": document},
    }
    template_text = json.dumps({"Resources": {"Policy": resource}})
    return [found.rule.id for found in lint(template_text, config=ManualArgs(include_checks=["I"]))]


@pytest.mark.slow
@pytest.mark.parametrize("name", POLICIES)
def test_linter_finds_nothing_in_a_policy(name: str) -> None:
    assert broken_rules(policy(name)) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rule", "changed"),
    [
        ("W3037", {"Action": "sqs:CreateQueu"}),
        ("I3510", {"Resource": "arn:aws:s3:::lambda-comfyui"}),
        ("E3510", {"Effect": "Alow"}),
    ],
)
def test_linter_finds_a_slip_in_a_policy(rule: str, changed: dict[str, str]) -> None:
    allowed = policy("deploy-resources")
    allowed["Statement"][0] |= changed

    assert rule in broken_rules(allowed)
