package main

import (
	"fmt"
	"math/big"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"
)

// readBody parses HCL2 text and returns the JSON form in which a job's `config` body travels from the job file to the
// client: a block, and an object in an attribute, is a list of objects; labels are keys around the body.
func readBody(text string) (map[string]any, error) {
	file, diagnostics := hclsyntax.ParseConfig([]byte(text), "job", hcl.InitialPos)
	if diagnostics.HasErrors() {
		return nil, diagnostics
	}
	reader := bodyReader{source: file.Bytes}
	return reader.body(file.Body.(*hclsyntax.Body))
}

type bodyReader struct{ source []byte }

func (r bodyReader) body(from *hclsyntax.Body) (map[string]any, error) {
	into := map[string]any{}
	for name, attribute := range from.Attributes {
		value, err := r.expression(attribute.Expr)
		if err != nil {
			return nil, err
		}
		into[name] = value
	}
	for _, block := range from.Blocks {
		nested, err := r.body(block.Body)
		if err != nil {
			return nil, err
		}
		for index := len(block.Labels) - 1; index >= 0; index-- {
			nested = map[string]any{block.Labels[index]: []any{nested}}
		}
		list, _ := into[block.Type].([]any)
		into[block.Type] = append(list, nested)
	}
	return into, nil
}

// expression evaluates what the job file itself can know. A name that it cannot know stays as `${name}` for the client.
func (r bodyReader) expression(from hclsyntax.Expression) (any, error) {
	context := &hcl.EvalContext{
		Variables: map[string]cty.Value{},
		UndefinedVariable: func(name hcl.Traversal) (cty.Value, hcl.Diagnostics) {
			return cty.StringVal("${" + string(name.SourceRange().SliceBytes(r.source)) + "}"), nil
		},
	}
	value, diagnostics := from.Value(context)
	if diagnostics.HasErrors() {
		return nil, diagnostics
	}
	return plain(value)
}

func plain(value cty.Value) (any, error) {
	type_ := value.Type()
	switch {
	case value.IsNull():
		return nil, nil
	case type_ == cty.String:
		return value.AsString(), nil
	case type_ == cty.Bool:
		return value.True(), nil
	case type_ == cty.Number:
		return number(value.AsBigFloat()), nil
	case type_.IsObjectType() || type_.IsMapType():
		into := map[string]any{}
		for name, element := range value.AsValueMap() {
			one, err := plain(element)
			if err != nil {
				return nil, err
			}
			into[name] = one
		}
		return []any{into}, nil
	case type_.IsTupleType() || type_.IsListType() || type_.IsSetType():
		into := []any{}
		for _, element := range value.AsValueSlice() {
			one, err := plain(element)
			if err != nil {
				return nil, err
			}
			if list, ok := one.([]any); ok && (element.Type().IsObjectType() || element.Type().IsMapType()) {
				one = list[0]
			}
			into = append(into, one)
		}
		return into, nil
	default:
		return nil, fmt.Errorf("a value of type %s", type_.FriendlyName())
	}
}

func number(value *big.Float) any {
	if whole, accuracy := value.Int64(); accuracy == big.Exact {
		return whole
	}
	approximate, _ := value.Float64()
	return approximate
}
