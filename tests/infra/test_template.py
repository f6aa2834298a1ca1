"""template.yaml: agrees with the settings, keeps Lambda's limits, and can be deployed.

The limits are AWS's for Managed Instances with a GPU. docs/deploy-aws-reference.md names their
sources.
"""

import json
import re
import tomllib
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import fields
from importlib import import_module
from itertools import product
from typing import Any

import boto3
import pytest
from moto import mock_aws
from moto.cloudformation.parsing import get_model_map

from events import eventbridge
from events.event_context import EventContext
from handler.job_events import JobCompleted, JobFailed
from handler.settings import PROJECT, Settings
from runtime.sam.intrinsics import Intrinsics
from tests.infra.template import parameter, properties, template, variables
from tests.workflows import image

MAX_VISIBILITY_S = 43_200
MAX_INIT_S = 900
# What copying 30 GB takes at 100 MB/s, a tenth of what S3 gives.
COPY_S = 300
# AWS's own, and those that other people's libraries read.
NOT_SETTINGS = {
    "CUDA_CACHE_PATH",
    "HF_HOME",
    "HOME",
    "TORCHINDUCTOR_CACHE_DIR",
    "TORCH_HOME",
    "TRITON_CACHE_DIR",
    "XDG_CACHE_HOME",
}
# Settings that a function on AWS needs not: a new one belongs here or into the template.
NOT_IN_TEMPLATE = {
    # The image has them.
    *("COMFYUI_HOME", "COMFYUI_DIR", "COMFYUI_PYTHON", "STANDIN_MODELS_DIR"),
    "WORKFLOW_TEMPLATES",
    # The role has them, the store is AWS.
    *("S3_ACCESS_KEY_ID", "S3_SECRET_ACCESS_KEY", "S3_ENDPOINT_URL"),
    # Lambda does what `lambda-comfyui serve` does elsewhere.
    *("QUEUE_URL", "QUEUE_BATCH_SIZE", "ON_FAILURE_URL", "EVENT_RETRIES", "EVENT_MAX_AGE"),
    *("SERVE_ADDRESS", "SERVE_PORT", "SERVE_CONCURRENCY", "SERVE_TIMEOUT", "SERVE_WAITING"),
    *("GPUS", "JOBS_MAY_OVERTAKE", "WARMUP_WORKFLOW"),
    *("BENCHMARK", "BENCHMARK_JSON_PATH", "BENCHMARK_TEST_WIDTH", "BENCHMARK_TEST_HEIGHT"),
    "BENCHMARK_TEST_STEPS",
    *("SERVE_GRACE", "JOBS_DB", "PYWORKER_LOG", "SHUTDOWN_GRACE"),
    # ModelStorage copies the weights of a prefix.
    *("MODEL_URLS", "PROVISIONING_SCRIPT", "BENCHMARK_JSON_URL"),
    # Lambda takes the whole instance down.
    *("IDLE_FREE_AFTER", "IDLE_STOP_AFTER", "IDLE_EXIT_AFTER"),
    # The default is right.
    *(
        "CUSTOM_NODES_REQUIRED",
        "S3_URL_EXPIRES",
        "WEBHOOK_TIMEOUT",
        "COMFYUI_PORT",
        "WORKER_HOOKS",
        "DEADLINE_MARGIN",
        "PRICE_PER_HOUR",
    ),
    *("ROUTER_ADDRESS", "ROUTER_PORT", "ROUTER_TOKEN", "ROUTER_WORKER_TOKEN", "ROUTER_ENDPOINTS"),
    *("SCALE_MACHINES", "SCALE_MAX_WORKERS", "SCALE_MIN_WORKERS", "SCALE_MIN_LOAD"),
    *("SCALE_TARGET_UTIL", "SCALE_COLD_MULT", "SCALE_MIN_COLD_LOAD", "SCALE_TARGET_QUEUE_TIME"),
    "SCALE_INACTIVITY_TIMEOUT",
    *("ROUTER_BALANCE", "ROUTER_MAX_QUEUE", "ROUTER_URL", "PUBLIC_URL"),
    *("API_ADDRESS", "API_PORT", "API_MAX_BODY", "API_TOKEN"),
    # The function URL of the GPU function asks for AWS credentials.
    *("INPUT_MAX_MB", "INPUT_TIMEOUT", "INPUT_BUCKETS"),
    *("JOBS_EXPIRE", "KEEP_OUTPUTS", "CLEAN_OLDER_THAN", "CLEAN_BELOW", "LOAD_ANY_FILE"),
}
# moto's CloudFormation does not know them. What they refer to stays in the test.
UNKNOWN_TO_MOTO = {
    "AWS::CloudWatch::Alarm",
    "AWS::Lambda::Alias",
    "AWS::Lambda::CapacityProvider",
    "AWS::Lambda::EventInvokeConfig",
    "AWS::Lambda::Url",
    "AWS::Logs::MetricFilter",
    "AWS::S3::BucketPolicy",
    "AWS::SQS::QueuePolicy",
}
UNKNOWN_OUTPUTS = {"CapacityProviderArn", "FunctionUrl"}
MANAGED_INSTANCE_PROPERTIES = {
    "AcceleratorConfig",
    "CapacityProviderConfig",
    "FunctionScalingConfig",
    "PublishToLatestPublished",
}
STORAGE_CONDITIONS = {"s3": "CopiesModels", "efs": "MountsEfs", "s3files": "MountsS3Files"}
INBOX_CONDITIONS = {"bucket": "HasInbox"}
ACCESS_POINTS = {
    "efs": "arn:aws:elasticfilesystem:us-east-1:123456789012:access-point/fsap-0123456789abcdef0",
    "s3files": "arn:aws:s3files:us-east-1:123456789012:file-system/fs-0123456789abcdef0"
    "/access-point/fsap-0123456789abcdef0",
}


def test_template_and_settings_know_the_same_variables() -> None:
    known = {item.metadata["env"] for item in fields(Settings)}

    assert variables().keys() - NOT_SETTINGS == known - NOT_IN_TEMPLATE
    assert known >= NOT_IN_TEMPLATE


def test_settings_take_the_values_of_the_template() -> None:
    given = {name: value for name, value in variables().items() if isinstance(value, str)}
    given["COMFYUI_ARGS"] = variables()["COMFYUI_ARGS"]["Fn::Sub"].replace("${ComfyUIArgs}", "")

    settings = Settings.from_env(given)

    assert settings.comfyui_args == Settings().comfyui_args
    assert str(settings.comfyui_data) == "/tmp/comfyui"
    assert str(settings.worker_dir) == "/tmp/worker"


def test_extension_ends_init_before_its_time_is_up() -> None:
    assert float(variables()["INIT_BUDGET"]) <= MAX_INIT_S - COPY_S


def test_everything_that_is_written_lies_in_tmp() -> None:
    places = [name for name in variables() if name.endswith(("_HOME", "_DIR", "_PATH"))]

    assert {"COMFYUI_DATA_DIR", "WORKER_DIR", "XDG_CACHE_HOME"} <= set(places)
    places.remove("MODELS_DIR")  # read, and a mount is read only
    assert all(variables()[name].startswith("/tmp/") for name in places)
    assert variables()["HOME"] == "/tmp"


def test_visibility_is_six_times_the_timeout() -> None:
    allowed = [int(value) for value in parameter("TimeoutSeconds")["AllowedValues"]]
    seconds = {int(k): v["Seconds"] for k, v in template()["Mappings"]["VisibilityTimeout"].items()}

    assert sorted(seconds) == sorted(allowed)
    assert all(6 * timeout <= visible <= MAX_VISIBILITY_S for timeout, visible in seconds.items())
    assert properties("Jobs")["VisibilityTimeout"] == {
        "Fn::FindInMap": ["VisibilityTimeout", {"Ref": "TimeoutSeconds"}, "Seconds"]
    }


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [
        ("MemoryMiB", 2_048, 32_768),
        ("TmpMiB", 512, 32_768),
        ("MemoryGiBPerVCpu", 2, 8),
        ("MaxVCpuCount", 2, 15_000),
        ("JobsPerEnvironment", 1, 8),
        ("MaxConcurrentJobs", 2, 1_000),
    ],
)
def test_numbers_stay_within_the_limits(name: str, least: int, most: int) -> None:
    given = parameter(name)

    assert least <= given["MinValue"] <= given["Default"] <= given["MaxValue"] <= most


def test_smallest_memory_is_one_vcpu_at_the_default_ratio() -> None:
    assert parameter("MemoryMiB")["MinValue"] >= parameter("MemoryGiBPerVCpu")["Default"] * 1024


@pytest.mark.parametrize(
    ("name", "taken", "refused"),
    [
        ("ComfyUIArgs", ["", "--highvram --reserve-vram 1"], ['--x "y', "it's", "--x \\"]),
        ("ModelsPrefix", ["models", "m", "a/b-1.0"], ["", "/models", "models/", "/"]),
        ("CompileCachePrefix", ["compiled", "a/b-1.0"], ["", "/compiled", "compiled/", "/"]),
    ],
)
def test_pattern_of_a_parameter(name: str, taken: list[str], refused: list[str]) -> None:
    pattern = re.compile(parameter(name)["AllowedPattern"])

    assert all(pattern.search(value) for value in taken)
    assert not any(pattern.search(value) for value in refused)


def test_timeout_leaves_the_whole_start_budget() -> None:
    """Init may take as long as the timeout, 900 s at most; the timeout may be 5,400 s."""
    allowed = parameter("TimeoutSeconds")["AllowedValues"]

    assert all(MAX_INIT_S <= int(value) <= 5_400 for value in allowed)


def test_gpu_memory_is_one_that_lambda_offers() -> None:
    assert parameter("AcceleratorMemoryGiB")["AllowedValues"] == [3, 6, 12, 16, 24, 48]


def test_function_is_what_a_gpu_needs() -> None:
    function = properties("ComfyUI")

    assert function["PackageType"] == "Image"
    assert function["Architectures"] == ["x86_64"]
    assert function.keys() >= MANAGED_INSTANCE_PROPERTIES
    assert function["LoggingConfig"]["LogFormat"] == "JSON"


def test_nothing_runs_while_there_is_nothing_to_do() -> None:
    scaling = properties("ComfyUI")["FunctionScalingConfig"]

    assert scaling["MinExecutionEnvironments"] == {"Ref": "MinEnvironments"}
    assert parameter("MinEnvironments")["Default"] == 0


def test_mapping_reports_failures_one_by_one() -> None:
    mapping = properties("JobsMapping")

    assert mapping["FunctionResponseTypes"] == ["ReportBatchItemFailures"]
    assert mapping["BatchSize"] == 1
    assert mapping["ScalingConfig"] == {"MaximumConcurrency": {"Ref": "MaxConcurrentJobs"}}
    assert mapping["FunctionName"] == {"Ref": "ComfyUI"}


def test_given_up_jobs_go_to_the_dead_letter_queue() -> None:
    redrive = properties("Jobs")["RedrivePolicy"]

    assert redrive["deadLetterTargetArn"] == {"Fn::GetAtt": ["DeadJobs", "Arn"]}
    assert variables()["DEAD_LETTER_QUEUE_URL"] == {"Ref": "DeadJobs"}


def test_failed_asynchronous_events_are_kept() -> None:
    asynchronous = properties("AsyncEvents")

    assert asynchronous["MaximumRetryAttempts"] == 2
    assert asynchronous["DestinationConfig"]["OnFailure"] == {
        "Destination": {"Fn::GetAtt": ["FailedEvents", "Arn"]}
    }


def test_api_function_has_the_packages_of_the_handler() -> None:
    lines = (PROJECT / "infra" / "api-requirements.txt").read_text().splitlines()
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]

    # Lambda's Python has the other two.
    assert [line for line in lines if not line.startswith("#")] == [
        package for package in project["dependencies"] if not package.startswith("boto")
    ]


def test_api_function_finds_queue_table_and_bucket() -> None:
    function = properties("ApiFunction")
    given = function["Environment"]["Variables"]

    assert {name: given[name]["Ref"] for name in ("JOBS_QUEUE_URL", "JOBS_TABLE")} == {
        "JOBS_QUEUE_URL": "Jobs",
        "JOBS_TABLE": "JobsTable",
    }
    assert given["S3_BUCKET_NAME"] == {"Ref": "Results"}
    module, _, name = function["Handler"].rpartition(".")
    assert callable(getattr(import_module(module), name))


def test_jobs_table_has_the_key_and_time_to_live_of_the_job_store() -> None:
    table = properties("JobsTable")

    assert table["KeySchema"] == [{"AttributeName": "id", "KeyType": "HASH"}]
    assert table["TimeToLiveSpecification"] == {"AttributeName": "expiration", "Enabled": True}


def _statements() -> Iterator[dict[str, Any]]:
    for policy in properties("FunctionRole")["Policies"]:
        for branch in policy.get("Fn::If", [None, policy, {}])[1:]:
            yield from branch.get("PolicyDocument", {}).get("Statement", [])


def test_role_names_its_actions_and_its_resources() -> None:
    statements = list(_statements())

    assert len(statements) == 17
    for statement in statements:
        assert "*" not in json.dumps(statement["Action"])
        assert statement["Resource"] != "*"
    assert "ManagedPolicyArns" not in properties("FunctionRole")


def test_role_may_call_what_the_store_of_jobs_calls() -> None:
    table, index = (s for s in _statements() if "JobsTable" in json.dumps(s["Resource"]))

    assert set(table["Action"]) == {"dynamodb:GetItem", "dynamodb:PutItem"}
    assert index["Action"] == "dynamodb:Query"
    (by_created,) = properties("JobsTable")["GlobalSecondaryIndexes"]
    assert index["Resource"]["Fn::Sub"].endswith(f"/index/{by_created['IndexName']}")


def test_api_asks_for_credentials_or_for_a_token() -> None:
    url, variables = properties("ApiUrl"), properties("ApiFunction")["Environment"]["Variables"]

    assert url["AuthType"] == {"Fn::If": ["HasOpenApi", "NONE", "AWS_IAM"]}
    assert variables["API_TOKEN"]["Fn::If"][0] == "HasOpenApi"
    assert set(variables) <= {field.metadata["env"] for field in fields(Settings)}
    parts = ("ApiRole", "ApiLogs", "ApiFunction", "ApiUrl")
    assert {template()["Resources"][name]["Condition"] for name in parts} == {"HasApi"}
    assert parameter("Api")["Default"] == "none"


def test_operator_role_lets_lambda_in_also_where_it_does_not_name_the_account() -> None:
    (statement,) = properties("OperatorRole")["AssumeRolePolicyDocument"]["Statement"]

    assert statement["Principal"] == {"Service": "lambda.amazonaws.com"}
    assert statement["Condition"] == {
        "StringEqualsIfExists": {"aws:SourceAccount": {"Ref": "AWS::AccountId"}}
    }


def test_wildcard_of_a_mount_is_bound_to_the_access_point() -> None:
    mounts = [s for s in _statements() if "file-system/*" in json.dumps(s["Resource"])]

    assert len(mounts) == 2
    for statement in mounts:
        (condition,) = statement["Condition"]["StringEquals"].items()
        assert condition[0].endswith(":AccessPointArn")
        assert condition[1] == {"Ref": "ModelsAccessPointArn"}


def test_role_may_remove_what_a_killed_attempt_left_in_the_results() -> None:
    allowed = {
        json.dumps(statement["Resource"]): statement["Action"]
        for statement in _statements()
        if "Results" in json.dumps(statement["Resource"])
    }

    objects, bucket = {"Fn::Sub": "${Results.Arn}/*"}, {"Fn::GetAtt": ["Results", "Arn"]}
    assert "s3:DeleteObject" in allowed[json.dumps(objects)]
    assert allowed[json.dumps(bucket)] == "s3:ListBucket"


@pytest.mark.parametrize(
    ("name", "policy"), [("Results", "ResultsPolicy"), ("InboxBucket", "InboxPolicy")]
)
def test_bucket_is_private_encrypted_tls_only_and_empties_itself(name: str, policy: str) -> None:
    bucket = properties(name)
    (statement,) = properties(policy)["PolicyDocument"]["Statement"]
    (rule,) = bucket["LifecycleConfiguration"]["Rules"]

    assert set(bucket["PublicAccessBlockConfiguration"].values()) == {True}
    assert "BucketEncryption" in bucket
    assert statement["Effect"] == "Deny"
    assert statement["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}
    assert properties(policy)["Bucket"] == {"Ref": name}
    assert rule["Status"] == "Enabled"
    assert "ExpirationInDays" in rule


def test_queues_of_jobs_take_messages_over_tls_and_from_the_inbox_alone() -> None:
    policy = properties("JobsPolicy")
    tls, (condition, inbox, otherwise) = (
        statement.get("Fn::If", statement) for statement in policy["PolicyDocument"]["Statement"]
    )

    assert policy["Queues"] == [{"Ref": "Jobs"}, {"Ref": "DeadJobs"}]
    assert (tls["Effect"], tls["Principal"]) == ("Deny", "*")
    assert tls["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}
    assert (condition, otherwise) == ("HasInbox", {"Ref": "AWS::NoValue"})
    assert (inbox["Effect"], inbox["Action"]) == ("Allow", "sqs:SendMessage")
    assert inbox["Principal"] == {"Service": "events.amazonaws.com"}
    assert inbox["Condition"] == {
        "ArnEquals": {"aws:SourceArn": {"Fn::GetAtt": ["InboxRule", "Arn"]}}
    }


def test_event_that_the_queue_does_not_take_is_a_dead_job() -> None:
    (target,) = properties("InboxRule")["Targets"]

    assert target["DeadLetterConfig"] == {"Arn": {"Fn::GetAtt": ["DeadJobs", "Arn"]}}


def test_workflow_in_the_inbox_lives_longer_than_any_message_about_it() -> None:
    (rule,) = properties("InboxBucket")["LifecycleConfiguration"]["Rules"]
    waits_s = sum(properties(name)["MessageRetentionPeriod"] for name in ("Jobs", "DeadJobs"))

    assert rule["ExpirationInDays"] * 86_400 > waits_s
    assert rule["NoncurrentVersionExpiration"]["NoncurrentDays"] * 86_400 > waits_s


def test_inbox_is_there_only_if_it_is_wanted() -> None:
    parts = ("InboxBucket", "InboxPolicy", "InboxRule")

    assert parameter("Inbox")["Default"] == "none"
    assert all(template()["Resources"][name]["Condition"] == "HasInbox" for name in parts)
    assert template()["Outputs"]["InboxBucket"]["Condition"] == "HasInbox"


def test_function_url_asks_for_credentials_and_names_the_alias() -> None:
    url, alias = properties("HttpEndpoint"), properties("LiveAlias")

    assert url["AuthType"] == "AWS_IAM"
    assert url["Qualifier"] == alias["Name"]
    assert alias["FunctionVersion"] == "$LATEST.PUBLISHED"


def test_metric_filters_wait_for_events_that_the_handler_logs() -> None:
    patterns = [properties(n)["FilterPattern"] for n in ("CompletedJobs", "FailedJobs")]

    events = [re.findall(r'"([a-z.]+)"', pattern) for pattern in patterns]

    assert events == [[JobCompleted.name], [JobFailed.name]]


def test_alarms_notify_the_topic_if_there_is_one() -> None:
    alarms = {k: v for k, v in template()["Resources"].items() if v["Type"].endswith("Alarm")}

    assert alarms.keys() == {
        "DeadJobsAlarm",
        "ErrorsAlarm",
        "FailedEventsAlarm",
        "OldestMessageAlarm",
    }
    for alarm in alarms.values():
        assert alarm["Properties"]["AlarmActions"]["Fn::If"][0] == "HasAlarmTopic"


def test_interface_shows_every_parameter_once() -> None:
    groups = template()["Metadata"]["AWS::CloudFormation::Interface"]["ParameterGroups"]
    shown = [name for group in groups for name in group["Parameters"]]

    assert sorted(shown) == sorted(template()["Parameters"])


def test_nothing_is_kept_from_moto_that_it_knows() -> None:
    types = {resource["Type"] for resource in template()["Resources"].values()}

    assert types - get_model_map().keys() == UNKNOWN_TO_MOTO


def _for_moto(parameters: dict[str, str]) -> str:
    """The template without what moto's CloudFormation does not know."""
    reduced = deepcopy(template())
    # It leaves a hole where AWS::NoValue takes an element out of a list.
    role = reduced["Resources"]["FunctionRole"]["Properties"]
    branches = [policy.get("Fn::If", [None, policy]) for policy in role["Policies"]]
    true = {
        None,
        STORAGE_CONDITIONS.get(parameters.get("ModelStorage", "image")),
        INBOX_CONDITIONS.get(parameters.get("Inbox", "none")),
        "HasCompileCache" if parameters.get("CompileCacheBucket", "none") != "none" else None,
    }
    role["Policies"] = [branch[1] for branch in branches if branch[0] in true]
    del reduced["Transform"]
    for name, resource in list(reduced["Resources"].items()):
        if resource["Type"] in UNKNOWN_TO_MOTO:
            del reduced["Resources"][name]
    # It names a resource that is left out; the others moto takes, and forgets.
    del reduced["Resources"]["ComfyUI"]["Properties"]["CapacityProviderConfig"]
    for name in UNKNOWN_OUTPUTS:
        del reduced["Outputs"][name]
    return json.dumps(reduced)


def _deploy(**parameters: str) -> dict[str, str]:
    """Make the stack and return its outputs."""
    given = {
        "ImageUri": "123456789012.dkr.ecr.us-east-1.amazonaws.com/lambda-comfyui:1",
        "SubnetIds": "subnet-0123456789abcdef0",
        "SecurityGroupIds": "sg-0123456789abcdef0",
        **parameters,
    }
    cloudformation = boto3.client("cloudformation", region_name="us-east-1")
    cloudformation.create_stack(
        StackName="comfy",
        TemplateBody=_for_moto(parameters),
        Capabilities=["CAPABILITY_IAM"],
        Parameters=[{"ParameterKey": k, "ParameterValue": v} for k, v in given.items()],
    )
    (stack,) = cloudformation.describe_stacks(StackName="comfy")["Stacks"]
    assert stack["StackStatus"] == "CREATE_COMPLETE"
    return {output["OutputKey"]: output["OutputValue"] for output in stack["Outputs"]}


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    with mock_aws():
        yield


@pytest.mark.usefixtures("aws")
def test_stack_deploys_and_its_parts_know_each_other() -> None:
    outputs = _deploy(TimeoutSeconds="1800")

    function = boto3.client("lambda", "us-east-1").get_function(
        FunctionName=outputs["FunctionName"]
    )["Configuration"]
    environment = function["Environment"]["Variables"]
    assert function["Timeout"] == 1800
    assert environment["S3_BUCKET_NAME"] == outputs["ResultsBucket"]
    assert environment["JOBS_TABLE"] == outputs["JobsTableName"]
    assert environment["DEAD_LETTER_QUEUE_URL"] == outputs["DeadJobsQueueUrl"]
    sqs = boto3.client("sqs", "us-east-1")
    queue = sqs.get_queue_attributes(QueueUrl=outputs["JobsQueueUrl"], AttributeNames=["All"])
    dead = sqs.get_queue_attributes(QueueUrl=outputs["DeadJobsQueueUrl"], AttributeNames=["All"])
    assert queue["Attributes"]["VisibilityTimeout"] == "10800"
    assert json.loads(queue["Attributes"]["RedrivePolicy"]) == {
        "deadLetterTargetArn": dead["Attributes"]["QueueArn"],
        "maxReceiveCount": 5,
    }
    (mapping,) = boto3.client("lambda", "us-east-1").list_event_source_mappings()[
        "EventSourceMappings"
    ]
    assert mapping["EventSourceArn"] == queue["Attributes"]["QueueArn"]
    assert mapping["FunctionResponseTypes"] == ["ReportBatchItemFailures"]


@pytest.mark.usefixtures("aws")
def test_dashboard_is_json_and_draws_every_queue() -> None:
    _deploy()

    cloudwatch = boto3.client("cloudwatch", "us-east-1")
    body = json.loads(cloudwatch.get_dashboard(DashboardName="comfy")["DashboardBody"])

    assert len(body["widgets"]) == 6
    assert "${" not in json.dumps(body)


@pytest.mark.usefixtures("aws")
@pytest.mark.parametrize("storage", ["image", "s3", "efs", "s3files"])
def test_storage_decides_permissions_and_variables(storage: str) -> None:
    _deploy(
        ModelStorage=storage,
        ModelsBucket="weights" if storage in ("s3", "s3files") else "none",
        **({"ModelsAccessPointArn": ACCESS_POINTS[storage]} if storage in ACCESS_POINTS else {}),
    )

    (function,) = boto3.client("lambda", "us-east-1").list_functions()["Functions"]
    added = {"s3": ["copy-models"], "efs": ["mount-efs"], "s3files": ["mount-s3-files"]}
    assert _policies_of_the_role() == sorted(
        ["jobs", "logs", "queues", "results", "task-tokens", *added.get(storage, [])]
    )
    environment = function["Environment"]["Variables"]
    folder = {"image": None, "s3": "/tmp/models"}.get(storage, "/mnt/models")
    assert environment.get("MODELS_DIR") == folder
    assert environment.get("MODELS_S3_URI") == ("s3://weights/models/" if storage == "s3" else None)


@pytest.mark.usefixtures("aws")
@pytest.mark.parametrize(
    ("bucket", "added", "uri"),
    [("none", [], None), ("code", ["compile-cache"], "s3://code/compiled/")],
)
def test_function_may_use_the_bucket_of_compiled_code_if_there_is_one(
    bucket: str, added: list[str], uri: str | None
) -> None:
    _deploy(CompileCacheBucket=bucket)

    (function,) = boto3.client("lambda", "us-east-1").list_functions()["Functions"]
    assert function["Environment"]["Variables"].get("COMPILE_CACHE") == uri
    assert _policies_of_the_role() == sorted(
        ["jobs", "logs", "queues", "results", "task-tokens", *added]
    )


def test_function_may_not_remove_compiled_code() -> None:
    use, look = (s for s in _statements() if "CompileCacheBucket" in json.dumps(s))

    assert use["Action"] == ["s3:GetObject", "s3:PutObject"]
    assert use["Resource"]["Fn::Sub"].endswith(":${CompileCacheBucket}/${CompileCachePrefix}/*")
    assert look["Action"] == "s3:ListBucket"


def _policies_of_the_role() -> list[str]:
    (function,) = boto3.client("lambda", "us-east-1").list_functions()["Functions"]
    role = function["Role"].rpartition("/")[2]
    found = boto3.client("iam", "us-east-1").list_role_policies(RoleName=role)["PolicyNames"]
    return sorted(found)


@pytest.mark.usefixtures("aws")
def test_workflow_that_is_dropped_into_the_inbox_becomes_a_job_in_the_queue() -> None:
    outputs = _deploy(Inbox="bucket")
    bucket = outputs["InboxBucket"]
    s3, sqs = boto3.client("s3", "us-east-1"), boto3.client("sqs", "us-east-1")
    # moto's CloudFormation leaves out these two properties of a bucket, and its mapping would look
    # for Docker.
    s3.put_bucket_versioning(
        Bucket=bucket, VersioningConfiguration=properties("InboxBucket")["VersioningConfiguration"]
    )
    s3.put_bucket_notification_configuration(
        Bucket=bucket, NotificationConfiguration={"EventBridgeConfiguration": {}}
    )
    functions = boto3.client("lambda", "us-east-1")
    (mapping,) = functions.list_event_source_mappings()["EventSourceMappings"]
    functions.update_event_source_mapping(UUID=mapping["UUID"], Enabled=False)

    workflow = image()
    s3.put_object(Bucket=bucket, Key="a cat.png", Body=b"x")
    s3.put_object(Bucket=bucket, Key="a cat & 1+1.json", Body=json.dumps(workflow))
    s3.put_object(Bucket=outputs["ResultsBucket"], Key="result.json", Body=b"{}")

    (message,) = sqs.receive_message(QueueUrl=outputs["JobsQueueUrl"], MaxNumberOfMessages=10)[
        "Messages"
    ]
    context = EventContext(handle=lambda asked, **_: {"asked": asked})
    reply = eventbridge.process(json.loads(message["Body"]), context)
    (request,) = (response["asked"] for response in reply["responses"])
    assert request["input"]["workflow_json"] == workflow
    assert request["input"]["request_id"].startswith(f"{bucket}/a cat & 1+1.json/")


@pytest.mark.usefixtures("aws")
@pytest.mark.parametrize(("inbox", "added"), [("none", []), ("bucket", ["inbox"])])
def test_function_may_read_the_inbox_if_there_is_one(inbox: str, added: list[str]) -> None:
    _deploy(Inbox=inbox)

    assert _policies_of_the_role() == sorted(
        ["jobs", "logs", "queues", "results", "task-tokens", *added]
    )


def test_function_may_do_nothing_else_with_the_inbox() -> None:
    read, look = (s for s in _statements() if "InboxBucket" in json.dumps(s))

    assert read["Action"] == ["s3:GetObject", "s3:GetObjectVersion"]
    assert read["Resource"] == {"Fn::Sub": "${InboxBucket.Arn}/*"}
    assert look["Action"] == "s3:ListBucket"
    assert look["Resource"] == {"Fn::GetAtt": ["InboxBucket", "Arn"]}


@pytest.mark.usefixtures("aws")
def test_rule_of_the_inbox_has_the_queue_as_its_target() -> None:
    outputs = _deploy(Inbox="bucket")
    queue = boto3.client("sqs", "us-east-1").get_queue_attributes(
        QueueUrl=outputs["JobsQueueUrl"], AttributeNames=["QueueArn"]
    )

    events = boto3.client("events", "us-east-1")
    (rule,) = events.list_rules()["Rules"]
    (target,) = events.list_targets_by_rule(Rule=rule["Name"])["Targets"]

    assert target["Arn"] == queue["Attributes"]["QueueArn"]
    assert json.loads(rule["EventPattern"])["detail"] == {
        "bucket": {"name": [outputs["InboxBucket"]]},
        "object": {"key": [{"suffix": {"equals-ignore-case": ".json"}}]},
    }


@pytest.mark.usefixtures("aws")
def test_stack_without_an_inbox_has_no_rule() -> None:
    outputs = _deploy()

    assert "InboxBucket" not in outputs
    assert boto3.client("events", "us-east-1").list_rules()["Rules"] == []


def test_mount_is_where_the_handler_looks() -> None:
    condition, (mount,), _ = properties("ComfyUI")["FileSystemConfigs"]["Fn::If"]
    asked, place, _ = variables()["MODELS_DIR"]["Fn::If"]

    assert (condition, mount["LocalMountPath"]) == (asked, place)


def test_each_storage_has_a_condition() -> None:
    for storage, condition in STORAGE_CONDITIONS.items():
        assert template()["Conditions"][condition] == {
            "Fn::Equals": [{"Ref": "ModelStorage"}, storage]
        }


def test_two_rules_cover_every_storage_that_needs_more() -> None:
    rules = [rule for name, rule in template()["Rules"].items() if name.startswith("Models")]
    asked = {
        condition["Fn::Equals"][1]
        for rule in rules
        for condition in rule["RuleCondition"]["Fn::Or"]
    }

    assert asked == set(parameter("ModelStorage")["AllowedValues"]) - {"image"}
    assert all(
        condition["Fn::Equals"][0] == {"Ref": "ModelStorage"}
        for rule, position in product(rules, (0, 1))
        for condition in [rule["RuleCondition"]["Fn::Or"][position]]
    )


def _broken_rules(given: dict[str, str]) -> set[str]:
    """The rules of the template that a stack with these parameters breaks."""
    values = {
        name: value.get("Default", "given") for name, value in template()["Parameters"].items()
    }
    broken = set()
    for name, rule in template()["Rules"].items():
        asserted = [assertion["Assert"] for assertion in rule["Assertions"]]
        checks = {"if": rule["RuleCondition"], "then": {"Fn::And": asserted}}
        intrinsics = Intrinsics(parameters=values | given, conditions=checks, mappings={})
        if intrinsics.holds("if") and not intrinsics.holds("then"):
            broken.add(name)
    return broken


def test_profiles_keep_the_rules_of_the_template() -> None:
    profiles = tomllib.loads((PROJECT / "samconfig.toml").read_text())
    del profiles["version"]

    for profile in profiles.values():
        items = profile["deploy"]["parameters"]["parameter_overrides"]
        assert _broken_rules(dict(item.split("=", 1) for item in items)) == set()


@pytest.mark.parametrize(
    ("given", "broken"),
    [
        ({}, set()),
        ({"ModelStorage": "s3", "ModelsBucket": "weights"}, set()),
        ({"ModelStorage": "s3"}, {"ModelsInABucket"}),
        ({"ModelsBucket": "weights"}, {"NoBucketForWeightsInTheImage"}),
        ({"ModelsAccessPointArn": ACCESS_POINTS["efs"]}, {"NoAccessPointWithoutAMount"}),
        ({"ModelStorage": "efs"}, {"ModelsOnAFileSystem"}),
        ({"ModelStorage": "efs", "ModelsAccessPointArn": ACCESS_POINTS["efs"]}, set()),
        ({"ModelStorage": "s3files"}, {"ModelsInABucket", "ModelsOnAFileSystem"}),
        ({"ModelManifests": "sd15"}, {"NoManifestsWithoutCopies"}),
        ({"ModelManifests": "sd15", "ModelStorage": "s3", "ModelsBucket": "weights"}, set()),
        ({"Api": "url-token"}, {"TokenForTheApi"}),
        ({"Api": "url-token", "ApiToken": "secret"}, set()),
    ],
)
def test_parameters_that_cannot_work_together_are_refused(
    given: dict[str, str], broken: set[str]
) -> None:
    assert _broken_rules(given) == broken
