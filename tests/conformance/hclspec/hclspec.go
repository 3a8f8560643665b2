// Package hclspec turns the schema that a plugin sends into the decoder that the real HCL library has for it, and runs
// it the way Nomad's client does: the config arrives as JSON, is read by hcl/json, decoded by hcldec and packed by cty.
package hclspec

import (
	"fmt"
	"maps"
	"slices"

	hclspecpb "chv.invalid/proto/hclspec"
	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/ext/typeexpr"
	"github.com/hashicorp/hcl/v2/hcldec"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/hashicorp/hcl/v2/json"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/msgpack"
)

// Encode decodes `text`, the JSON form of a config body, by `spec` and packs the result. Variables are what `${…}` in
// the values may name.
func Encode(spec *hclspecpb.Spec, text []byte, variables map[string]cty.Value) ([]byte, error) {
	decoder, err := Decoder(spec)
	if err != nil {
		return nil, err
	}
	file, diagnostics := json.Parse(text, "config")
	if diagnostics.HasErrors() {
		return nil, diagnostics
	}
	value, diagnostics := hcldec.Decode(file.Body, decoder, &hcl.EvalContext{Variables: variables})
	if diagnostics.HasErrors() {
		return nil, diagnostics
	}
	return msgpack.Marshal(value, value.Type())
}

// Decoder makes an hcldec.Spec of what came over the wire.
func Decoder(spec *hclspecpb.Spec) (hcldec.Spec, error) {
	return decoder(spec, "")
}

// decoder converts one node. A member of an object may leave its name out: then it has the member's own.
func decoder(spec *hclspecpb.Spec, member string) (hcldec.Spec, error) {
	switch block := spec.GetBlock().(type) {
	case *hclspecpb.Spec_Object:
		return object(block.Object)
	case *hclspecpb.Spec_Array:
		return array(block.Array)
	case *hclspecpb.Spec_Attr:
		return attr(block.Attr, member)
	case *hclspecpb.Spec_BlockValue:
		nested, err := Decoder(block.BlockValue.GetNested())
		name := named(block.BlockValue.GetName(), member)
		return &hcldec.BlockSpec{TypeName: name, Required: block.BlockValue.GetRequired(), Nested: nested},
			wrap(name, err)
	case *hclspecpb.Spec_BlockAttrs:
		name := named(block.BlockAttrs.GetName(), member)
		element, err := valueType(block.BlockAttrs.GetType())
		return &hcldec.BlockAttrsSpec{
			TypeName: name, ElementType: element, Required: block.BlockAttrs.GetRequired(),
		}, wrap(name, err)
	case *hclspecpb.Spec_BlockList:
		list := block.BlockList
		name := named(list.GetName(), member)
		nested, err := Decoder(list.GetNested())
		return &hcldec.BlockListSpec{
			TypeName: name, MinItems: int(list.GetMinItems()), MaxItems: int(list.GetMaxItems()), Nested: nested,
		}, wrap(name, err)
	case *hclspecpb.Spec_BlockSet:
		set := block.BlockSet
		name := named(set.GetName(), member)
		nested, err := Decoder(set.GetNested())
		return &hcldec.BlockSetSpec{
			TypeName: name, MinItems: int(set.GetMinItems()), MaxItems: int(set.GetMaxItems()), Nested: nested,
		}, wrap(name, err)
	case *hclspecpb.Spec_BlockMap:
		name := named(block.BlockMap.GetName(), member)
		nested, err := Decoder(block.BlockMap.GetNested())
		return &hcldec.BlockMapSpec{TypeName: name, LabelNames: block.BlockMap.GetLabels(), Nested: nested},
			wrap(name, err)
	case *hclspecpb.Spec_Default:
		return defaulted(block.Default)
	case *hclspecpb.Spec_Literal:
		return literal(block.Literal)
	default:
		return nil, fmt.Errorf("%s: a spec without content", member)
	}
}

func object(from *hclspecpb.Object) (hcldec.Spec, error) {
	members := hcldec.ObjectSpec{}
	for _, name := range slices.Sorted(maps.Keys(from.GetAttributes())) {
		member, err := decoder(from.GetAttributes()[name], name)
		if err != nil {
			return nil, wrap(name, err)
		}
		members[name] = member
	}
	return members, nil
}

func array(from *hclspecpb.Array) (hcldec.Spec, error) {
	var items hcldec.TupleSpec
	for index, value := range from.GetValues() {
		item, err := Decoder(value)
		if err != nil {
			return nil, wrap(fmt.Sprint(index), err)
		}
		items = append(items, item)
	}
	return items, nil
}

func attr(from *hclspecpb.Attr, member string) (hcldec.Spec, error) {
	name := named(from.GetName(), member)
	if name == "" {
		return nil, fmt.Errorf("an attribute of type %q without a name", from.GetType())
	}
	type_, err := valueType(from.GetType())
	return &hcldec.AttrSpec{Name: name, Type: type_, Required: from.GetRequired()}, wrap(name, err)
}

func defaulted(from *hclspecpb.Default) (hcldec.Spec, error) {
	primary, err := Decoder(from.GetPrimary())
	if err != nil {
		return nil, err
	}
	fallback, err := Decoder(from.GetDefault())
	return &hcldec.DefaultSpec{Primary: primary, Default: fallback}, err
}

func literal(from *hclspecpb.Literal) (hcldec.Spec, error) {
	expression, diagnostics := hclsyntax.ParseExpression([]byte(from.GetValue()), "literal", hcl.InitialPos)
	if diagnostics.HasErrors() {
		return nil, diagnostics
	}
	value, diagnostics := expression.Value(nil)
	if diagnostics.HasErrors() {
		return nil, diagnostics
	}
	return &hcldec.LiteralSpec{Value: value}, nil
}

func valueType(text string) (cty.Type, error) {
	expression, diagnostics := hclsyntax.ParseExpression([]byte(text), "type", hcl.InitialPos)
	if diagnostics.HasErrors() {
		return cty.DynamicPseudoType, diagnostics
	}
	type_, diagnostics := typeexpr.TypeConstraint(expression)
	if diagnostics.HasErrors() {
		return cty.DynamicPseudoType, diagnostics
	}
	return type_, nil
}

func named(own, member string) string {
	if own != "" {
		return own
	}
	return member
}

func wrap(name string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", name, err)
}
