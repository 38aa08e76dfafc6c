package main

import "context"

func (b *bench) latency(context.Context) error    { return nil }
func (b *bench) crowd(context.Context) error      { return nil }
func (b *bench) idle(context.Context) error       { return nil }
func (b *bench) churn(context.Context) error      { return nil }
func (b *bench) fan(context.Context) error        { return nil }
func (b *bench) roomsGrow(context.Context) error  { return nil }
func (b *bench) nodes(context.Context) error      { return nil }
func (b *bench) stored(context.Context) error     { return nil }
func (b *bench) publishing(context.Context) error { return nil }
func (b *bench) write(context.Context) error      { return nil }
