create table customers (
    id bigint generated always as identity primary key,
    name text not null,
    email text not null unique,
    joined_at timestamptz not null default now()
);
create table products (
    sku text primary key,
    name text not null,
    price numeric(10, 2) not null check (price > 0),
    stock integer not null
);
create type order_status as enum ('new', 'paid', 'shipped', 'cancelled');
create table orders (
    id bigint generated always as identity primary key,
    customer_id bigint not null references customers,
    status order_status not null default 'new',
    placed_at timestamptz not null default now()
);
create index on orders (customer_id);
create table order_items (
    order_id bigint not null references orders,
    line smallint not null,
    sku text not null references products,
    quantity integer not null check (quantity > 0),
    price numeric(10, 2) not null,
    primary key (order_id, line)
);

insert into customers (name, email)
select format('Customer %s', i), format('customer%s@example.com', i) from generate_series(1, 400) i;
insert into products
select format('SKU-%s', to_char(i, 'FM000')), format('Product %s', i), 4.99 + i, 10000
from generate_series(1, 60) i;
insert into orders (customer_id, status)
select 1 + i % 400, 'paid' from generate_series(1, 1500) i;
insert into order_items
select i, 1, format('SKU-%s', to_char(1 + i % 60, 'FM000')), 1 + i % 3, 9.99
from generate_series(1, 1500) i;
