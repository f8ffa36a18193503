-- A shop: nothing in it has a name that agentd needs.
create type order_state as enum ('open', 'paid', 'sent');
create table products (id bigint generated always as identity primary key, name text not null, price numeric(10, 2) not null);
create table orders (
  id bigint generated always as identity primary key, product_id bigint not null references products (id),
  buyer uuid references auth.users (id), state order_state not null default 'open', placed_at timestamptz not null default now()
);
create index orders_product_idx on orders (product_id);
create view open_orders as select * from orders where state = 'open';
create function price_of(order_id bigint) returns numeric language sql stable as $$
  select p.price from orders o join products p on p.id = o.product_id where o.id = order_id
$$;
alter table orders enable row level security;
create policy own_orders on orders using (buyer = auth.uid());
insert into products (name, price) values ('Coffee', 8.50);
insert into orders (product_id) values (1);
