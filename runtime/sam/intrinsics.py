"""CloudFormation's intrinsic functions, as far as a template resolves them without a stack.

https://docs.aws.amazon.com/AWSCloudFormation/latest/TemplateReference/intrinsic-function-reference.html
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from runtime.errors import LambdaComfyUIError

# The value of `!Ref AWS::NoValue`: the property counts as absent.
NO_VALUE: Final = object()


class UnresolvableError(LambdaComfyUIError):
    """Only a deployed stack knows the value: of a resource, or of a parameter without a default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Intrinsics:
    """`parameters` are those with a value, pseudo parameters included.

    `conditions` and `mappings` are the template's sections of those names.
    """

    parameters: Mapping[str, str]
    conditions: Mapping[str, Any]
    mappings: Mapping[str, Any]

    def resolve(self, value: Any) -> Any:
        """The result of an intrinsic function; any other value as it is.

        Raises UnresolvableError.
        """
        if not isinstance(value, dict) or len(value) != 1:
            return value
        ((name, argument),) = value.items()
        match name, argument:
            case "Ref", str(parameter):
                return self._parameter(parameter)
            case "Fn::Sub", str(text):
                return self._sub(text, {})
            case "Fn::Sub", [str(text), dict(own)]:
                return self._sub(text, own)
            case "Fn::If", [str(condition), then, otherwise]:
                return self.resolve(then if self._holds({"Condition": condition}) else otherwise)
            case "Fn::FindInMap", [_, _, _]:
                return self._find(argument)
        if name == "Ref" or name.startswith("Fn::"):
            raise UnresolvableError(name)
        return value

    def _parameter(self, name: str) -> Any:
        if name == "AWS::NoValue":
            return NO_VALUE
        if name not in self.parameters:
            raise UnresolvableError(name)
        return self.parameters[name]

    def _sub(self, text: str, own: Mapping[str, Any]) -> str:
        def value_of(reference: "re.Match[str]") -> str:
            name = reference[1].strip()
            if name.startswith("!"):
                return f"${{{name[1:]}}}"
            return self._text(own.get(name, {"Ref": name}))

        return re.sub(r"\$\{([^}]*)\}", value_of, text)

    def _find(self, keys: list[Any]) -> Any:
        value: Any = self.mappings
        for key in map(self._text, keys):
            if not isinstance(value, dict) or key not in value:
                raise UnresolvableError(key)
            value = value[key]
        return value

    def holds(self, condition: str) -> bool:
        """Whether the condition with this name is true. Raises UnresolvableError."""
        return self._holds({"Condition": condition})

    def _holds(self, condition: Any) -> bool:
        match condition:
            case {"Condition": str(name)} if name in self.conditions:
                return self._holds(self.conditions[name])
            case {"Fn::Equals": [left, right]}:
                return self._text(left) == self._text(right)
            case {"Fn::Not": [one]}:
                return not self._holds(one)
            case {"Fn::And": [*all_of]}:
                return all(map(self._holds, all_of))
            case {"Fn::Or": [*any_of]}:
                return any(map(self._holds, any_of))
        raise UnresolvableError("a condition")

    def _text(self, value: Any) -> str:
        resolved = self.resolve(value)
        if not isinstance(resolved, str):
            raise UnresolvableError("a text")
        return resolved
